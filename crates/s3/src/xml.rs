//! XML, as little of it as S3 needs: a writer that escapes what XML cannot carry, and a reader into a small tree.
//!
//! The reader takes at most 2 MiB (its callers see to that) and a few levels, no DTD, no entity but the five of XML.
//! Control characters in keys are written as references (`&#x1;`), as S3 does: not XML 1.0 to the letter, but what
//! clients read.

use crate::error::{Code, S3Error, S3Result};
use quick_xml::Reader;
use quick_xml::events::Event;
use std::fmt::Write as _;

/// Deeper than any request of S3.
const DEPTH_MAX: usize = 16;

/// An element that was read.
#[derive(Debug, Default)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) children: Vec<Element>,
    content: String,
}

impl Element {
    /// The text of the first child of that name.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.child(name).map(|child| child.content.trim().to_owned())
    }

    /// The text of the first child of that name, as it stands: a key may begin with a space.
    pub(crate) fn raw_text(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.content.as_str())
    }

    fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }
}

fn malformed(detail: impl std::fmt::Display) -> S3Error {
    S3Error::new(Code::MalformedXML, format!("the XML is not well formed: {detail}"))
}

/// Reads a document: its root element.
pub(crate) fn parse(bytes: &[u8]) -> S3Result<Element> {
    let text = std::str::from_utf8(bytes).map_err(malformed)?;
    let mut reader = Reader::from_str(text);
    // the first is the document; its only child is the root
    let mut open = vec![Element::default()];
    loop {
        let event = reader.read_event().map_err(malformed)?;
        match event {
            Event::Start(start) => {
                if open.len() > DEPTH_MAX {
                    return Err(malformed("too deep"));
                }
                open.push(named(start.local_name().as_ref()));
            }
            Event::Empty(start) => add_child(&mut open, named(start.local_name().as_ref()))?,
            Event::End(_) => {
                let done = open.pop().ok_or_else(|| malformed("an end without a start"))?;
                add_child(&mut open, done)?;
            }
            Event::Text(text) => add_text(&mut open, &text.xml10_content())?,
            Event::CData(text) => add_text(&mut open, &text.xml10_content())?,
            Event::GeneralRef(reference) => {
                let resolved = reference.resolve_char_ref().map_err(malformed)?;
                let text = match resolved {
                    Some(letter) => letter.to_string(),
                    None => {
                        quick_xml::escape::resolve_predefined_entity(&reference.xml10_content())
                            .ok_or_else(|| malformed("an unknown entity"))?
                            .to_owned()
                    }
                };
                add_text(&mut open, &text)?;
            }
            Event::DocType(_) => return Err(malformed("a document type is not allowed")),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Eof => break,
        }
    }
    match (open.pop(), open.is_empty()) {
        (Some(mut document), true) if document.children.len() == 1 => {
            document.children.pop().ok_or_else(|| malformed("empty"))
        }
        _ => Err(malformed("one root element is expected")),
    }
}

fn named(name: impl AsRef<[u8]>) -> Element {
    Element { name: String::from_utf8_lossy(name.as_ref()).into_owned(), ..Element::default() }
}

fn add_child(open: &mut [Element], child: Element) -> S3Result<()> {
    open.last_mut().ok_or_else(|| malformed("an end without a start"))?.children.push(child);
    Ok(())
}

fn add_text(open: &mut [Element], text: &str) -> S3Result<()> {
    open.last_mut().ok_or_else(|| malformed("text without an element"))?.content.push_str(text);
    Ok(())
}

/// Writes a document.
pub(crate) struct Xml(String);

/// The name space of S3's answers.
const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

impl Xml {
    /// A document with a root in the name space of S3.
    pub(crate) fn document(root: &str, fill: impl FnOnce(&mut Self)) -> String {
        let mut xml = Self(String::with_capacity(512));
        xml.0.push_str("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        // writing to a string does not fail
        let _ = write!(xml.0, "<{root} xmlns=\"{NAMESPACE}\">");
        fill(&mut xml);
        let _ = write!(xml.0, "</{root}>");
        xml.0
    }

    /// A document without a name space: an error.
    pub(crate) fn plain(root: &str, fill: impl FnOnce(&mut Self)) -> String {
        let mut xml = Self(String::with_capacity(256));
        xml.0.push_str("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        xml.element(root, fill);
        xml.0
    }

    /// An element with children.
    pub(crate) fn element(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        let _ = write!(self.0, "<{name}>");
        fill(self);
        let _ = write!(self.0, "</{name}>");
    }

    /// An element with the attributes of a grantee.
    pub(crate) fn grantee(&mut self, fill: impl FnOnce(&mut Self)) {
        self.0.push_str(
            "<Grantee xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"CanonicalUser\">",
        );
        fill(self);
        self.0.push_str("</Grantee>");
    }

    /// An element with text.
    pub(crate) fn text(&mut self, name: &str, value: impl AsRef<str>) {
        let _ = write!(self.0, "<{name}>");
        self.escaped(value.as_ref());
        let _ = write!(self.0, "</{name}>");
    }

    /// An element with something that prints.
    pub(crate) fn value(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = write!(self.0, "<{name}>{value}</{name}>");
    }

    /// Text, escaped.
    pub(crate) fn escaped(&mut self, text: &str) {
        for letter in text.chars() {
            match letter {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => {
                    let _ = write!(self.0, "&#x{:x};", u32::from(letter));
                }
                other => self.0.push(other),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_reads_back() {
        let key = " <a>&\"b\"\t\r\n ä";
        let text = Xml::document("Root", |xml| {
            xml.text("Key", key);
            xml.element("Inner", |xml| xml.value("Size", 7));
        });
        let root = parse(text.as_bytes()).expect("well formed");
        assert_eq!((root.name.as_str(), root.raw_text("Key")), ("Root", Some(key)));
        assert_eq!(root.children[1].text("Size").as_deref(), Some("7"));
    }

    #[test]
    fn what_is_not_wanted_is_refused() {
        let deep = format!("{}{}", "<a>".repeat(40), "</a>".repeat(40));
        for bad in [
            "",
            "text",
            "<a>",
            "<a></b>",
            "<a/><b/>",
            "<!DOCTYPE a [<!ENTITY x \"y\">]><a>&x;</a>",
            "<a>&x;</a>",
            &deep,
        ] {
            assert_eq!(
                parse(bad.as_bytes()).err().map(|e| e.code),
                Some(Code::MalformedXML),
                "{bad}"
            );
        }
    }
}
