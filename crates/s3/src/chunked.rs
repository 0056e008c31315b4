//! Takes `aws-chunked` framing off a body while it streams, verifying each chunk's signature where it has one.
//!
//! ```text
//! chunk   := hex-size [ ";chunk-signature=" 64 hex ] CRLF  bytes CRLF
//! body    := chunk*  chunk of size 0  (name ":" value line end)*  CRLF
//! ```
//! Bytes of a chunk go out before its signature is known to be good: whoever stores them must not publish them before
//! [`Decoder::finish`] has agreed. So memory does not depend on the size of a chunk (S5). A body that ends before the
//! chunk of size 0 is refused.

use crate::error::{Code, S3Error, S3Result};
use crate::signature::ChunkSigner;
use bytes::{Buf as _, Bytes};
use sha2::{Digest as _, Sha256};

/// Longer than any line of framing: a size, a signature.
const LINE_BYTES_MAX: usize = 1024;
/// As the head of a request.
const TRAILER_BYTES_MAX: usize = 16 * 1024;

enum State {
    Head,
    Data { left: u64 },
    DataEnd,
    Trailer,
}

/// See the module.
pub(crate) struct Decoder {
    state: State,
    line: Vec<u8>,
    signer: Option<ChunkSigner>,
    chunk_hash: Sha256,
    chunk_signature: String,
    trailers: Vec<(String, String)>,
    trailer_bytes: usize,
    has_trailer: bool,
}

fn bad_framing() -> S3Error {
    S3Error::new(Code::InvalidRequest, "the aws-chunked framing of the body is not valid")
}

fn bad_signature() -> S3Error {
    S3Error::new(Code::SignatureDoesNotMatch, "the signature of a chunk does not match")
}

impl Decoder {
    /// `has_trailer`: the head announced one.
    pub(crate) fn new(signer: Option<ChunkSigner>, has_trailer: bool) -> Self {
        Self {
            state: State::Head,
            line: Vec::new(),
            signer,
            chunk_hash: Sha256::new(),
            chunk_signature: String::new(),
            trailers: Vec::new(),
            trailer_bytes: 0,
            has_trailer,
        }
    }

    /// Takes from `input`; gives payload as soon as it meets some. `None`: all input was taken.
    pub(crate) fn take(&mut self, input: &mut Bytes) -> S3Result<Option<Bytes>> {
        while !input.is_empty() {
            if let State::Data { left } = &mut self.state {
                let count = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                let payload = input.split_to(count);
                *left -= count as u64;
                let is_end = *left == 0;
                self.hash_payload(&payload, is_end)?;
                return Ok(Some(payload));
            }
            if self.take_line(input)? {
                let line = std::mem::take(&mut self.line);
                self.end_line(trim_line_end(&line))?;
            }
        }
        Ok(None)
    }

    fn hash_payload(&mut self, payload: &[u8], is_end: bool) -> S3Result<()> {
        if self.signer.is_some() {
            self.chunk_hash.update(payload);
        }
        if is_end {
            self.state = State::DataEnd;
            self.verify_chunk()?;
        }
        Ok(())
    }

    fn verify_chunk(&mut self) -> S3Result<()> {
        let Some(signer) = &mut self.signer else { return Ok(()) };
        let sha256 = self.chunk_hash.finalize_reset();
        if signer.chunk(&sha256, &self.chunk_signature) { Ok(()) } else { Err(bad_signature()) }
    }

    /// Whether a whole line has been gathered, with its end.
    fn take_line(&mut self, input: &mut Bytes) -> S3Result<bool> {
        let end = input.iter().position(|byte| *byte == b'\n');
        let count = end.map_or(input.len(), |at| at + 1);
        if self.line.len() + count > LINE_BYTES_MAX {
            return Err(bad_framing());
        }
        self.line.extend_from_slice(&input[..count]);
        input.advance(count);
        Ok(end.is_some())
    }

    fn end_line(&mut self, line: &[u8]) -> S3Result<()> {
        let line = std::str::from_utf8(line).map_err(|_| bad_framing())?;
        match self.state {
            State::Head => self.begin_chunk(line),
            State::DataEnd if line.is_empty() => {
                self.state = State::Head;
                Ok(())
            }
            State::Trailer => self.add_trailer(line),
            State::DataEnd | State::Data { .. } => Err(bad_framing()),
        }
    }

    fn begin_chunk(&mut self, line: &str) -> S3Result<()> {
        let (size, extension) = line.split_once(';').unwrap_or((line, ""));
        let is_hex = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_hexdigit());
        let size = u64::from_str_radix(size, 16).ok().filter(|_| is_hex).ok_or_else(bad_framing)?;
        if self.signer.is_some() {
            let signature = extension.strip_prefix("chunk-signature=").ok_or_else(bad_framing)?;
            signature.clone_into(&mut self.chunk_signature);
        }
        if size > 0 {
            self.state = State::Data { left: size };
            return Ok(());
        }
        self.state = State::Trailer;
        self.verify_chunk()
    }

    fn add_trailer(&mut self, line: &str) -> S3Result<()> {
        self.trailer_bytes += line.len();
        if self.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(bad_framing());
        }
        // clients differ in how many empty lines they put around trailers
        if line.is_empty() {
            return Ok(());
        }
        let (name, value) = line.split_once(':').ok_or_else(bad_framing)?;
        self.trailers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        Ok(())
    }

    /// The body has ended: its trailing headers, if all of it was there and genuine.
    pub(crate) fn finish(mut self) -> S3Result<Vec<(String, String)>> {
        if !matches!(self.state, State::Trailer) {
            return Err(Code::IncompleteBody.into());
        }
        // a last trailer line may lack its end
        if !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            self.end_line(trim_line_end(&line))?;
        }
        let is_signature = |(name, _): &(String, String)| name == "x-amz-trailer-signature";
        let signature = self.trailers.iter().position(is_signature);
        let signature = signature.map(|at| self.trailers.swap_remove(at).1);
        if let Some(signer) = self.signer.as_mut().filter(|_| self.has_trailer) {
            self.trailers.sort();
            let canonical: String =
                self.trailers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
            if !signature.is_some_and(|signature| signer.trailer(&canonical, &signature)) {
                return Err(bad_signature());
            }
        }
        if !self.has_trailer && !self.trailers.is_empty() {
            return Err(bad_framing());
        }
        Ok(self.trailers)
    }
}

fn trim_line_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Decoded = (Vec<u8>, Vec<(String, String)>);

    fn decode(body: &[u8], cut: usize) -> S3Result<Decoded> {
        let mut decoder = Decoder::new(None, true);
        let mut payload = Vec::new();
        for piece in body.chunks(cut.max(1)) {
            let mut input = Bytes::copy_from_slice(piece);
            while let Some(bytes) = decoder.take(&mut input)? {
                payload.extend_from_slice(&bytes);
            }
        }
        Ok((payload, decoder.finish()?))
    }

    proptest! {
        #[test]
        fn however_the_body_is_cut_the_payload_is_the_same(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..5),
            cut in 1_usize..30,
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\nx-amz-checksum-crc32: AAAA \r\n\r\n");
            let (payload, trailers) = decode(&body, cut).expect("well formed");
            prop_assert_eq!(payload, chunks.concat());
            prop_assert_eq!(trailers, vec![("x-amz-checksum-crc32".to_owned(), "AAAA".to_owned())]);
        }
    }

    #[test]
    fn what_is_cut_short_or_garbled_is_refused() {
        for bad in [
            "",
            "4\r\nab",
            "4\r\nabcd\r\n",
            "4\r\nabcdX\r\n0\r\n\r\n",
            "x\r\n",
            "+4\r\nabcd\r\n0\r\n\r\n",
        ] {
            assert!(decode(bad.as_bytes(), 3).is_err(), "{bad:?}");
        }
        assert!(decode(&[b'1'; 5000], 100).is_err());
    }
}
