//! The program says its verdict as a sentence, as JSON and as its exit code.

#[allow(dead_code, reason = "each test file uses the words that it needs")]
mod tale;

use std::path::{Path, PathBuf};
use std::process::Command;
use tale::*;

/// A directory that goes with its test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).expect("a directory of the test's own");
        Self(path)
    }

    fn check(&self, history: &str, more: &[&str]) -> (Option<i32>, String) {
        std::fs::write(self.0.join("history.jsonl"), history).expect("writing a history");
        let output = Command::new(env!("CARGO_BIN_EXE_ashlar-check"))
            .current_dir(&self.0)
            .arg("history.jsonl")
            .args(more)
            .output()
            .expect("the program starts");
        (output.status.code(), String::from_utf8(output.stdout).expect("it speaks UTF-8"))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _unless_gone = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn pass_fail_and_inconclusive_have_their_codes() {
    let dir = Dir::new("verdicts");
    let good = Tale::default().ok(0, 5, put("a", 1)).ok(6, 7, get("a", Some(1)));
    let (code, said) = dir.check(&good.history.to_lines(), &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.starts_with("pass: 2 operations, nothing that the contract forbids\n"), "{said}");
    let lost = good.ok(8, 9, get("a", None)).history.to_lines();
    let (code, said) = dir.check(&lost, &[]);
    assert_eq!(code, Some(1), "{said}");
    let (sentence, json) = said.split_once('\n').unwrap();
    assert!(sentence.starts_with("fail: 3 operations, presence (C1 C2): a: operation 2 found"));
    let report: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(report["verdict"], "fail");
    assert_eq!(report["anomalies"][0]["sort"], "lost");
    let (code, said) = dir.check(&lost[..lost.len() - 9], &[]);
    assert_eq!(code, Some(2), "a cut file is no history: {said}");
    assert!(said.starts_with("inconclusive: "), "{said}");
    assert_eq!(dir.check("", &[]).0, Some(2), "nothing shows nothing");
    assert_eq!(dir.check("", &["--nonsense"]).0, Some(2));
}

#[test]
fn twins_are_written_where_they_are_asked_for() {
    let dir = Dir::new("twins");
    let tale = Tale::default().ok(0, 5, put("a", 1)).ok(6, 7, get("a", Some(1)));
    let (code, _) = dir.check(&tale.history.to_lines(), &["--edn", "k.edn", "--elle", "e.edn"]);
    assert_eq!(code, Some(0));
    let operations = tale.history.operations().unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.0.join(name)).unwrap();
    assert_eq!(read("k.edn"), ashlar_check::edn::register(&operations, None));
    assert_eq!(read("e.edn"), ashlar_check::edn::elle(&operations).0);
    let (code, _) = dir.check(&tale.history.to_lines(), &["--edn", "a.edn", "--key", "a"]);
    assert_eq!(code, Some(0));
    assert!(read("a.edn").contains(":f :write, :value 1}"));
}
