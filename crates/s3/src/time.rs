//! Times as S3 writes them: ISO 8601 with milliseconds in XML, the date of HTTP in headers.

use jiff::Timestamp;
use jiff::fmt::rfc2822;

fn timestamp(ms: u64) -> Timestamp {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
}

/// `2026-11-23T12:41:26.000Z`
pub(crate) fn iso(ms: u64) -> String {
    timestamp(ms).strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

/// `Mon, 23 Nov 2026 12:41:26 GMT`
pub(crate) fn http_date(ms: u64) -> String {
    let printed = rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&timestamp(ms));
    // fails only for years before 0, which no unsigned number of milliseconds since 1970 is
    printed.unwrap_or_default()
}

/// The seconds since 1970 of a date of HTTP; `None` for anything else, which then counts as absent (RFC 9110, 13.1.3).
pub(crate) fn parse_http_date(text: &str) -> Option<i64> {
    let parsed = rfc2822::DateTimeParser::new().parse_timestamp(text).ok();
    let parsed = parsed.or_else(|| text.parse::<Timestamp>().ok());
    parsed.map(Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_read_back() {
        let ms = 1_795_437_686_123;
        assert_eq!(iso(ms), "2026-11-23T12:41:26.123Z");
        assert_eq!(http_date(ms), "Mon, 23 Nov 2026 12:41:26 GMT");
        assert_eq!(parse_http_date(&http_date(ms)), Some(1_795_437_686));
        assert_eq!(parse_http_date("yesterday"), None);
    }
}
