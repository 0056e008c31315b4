//! House rules that no compiler knows.
//!
//! Every crate has a README; no file in the repository exceeds 1 MiB; nothing is left to do in code; every format
//! page is named by the code that tests its bytes; no path of one particular machine is written down; every page of
//! the book is in its summary.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Larger files belong elsewhere: a clone carries them for ever.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Words that mean "not written yet", and homes of particular machines. Split, so that this file passes its own rules.
const UNFINISHED: [&str; 2] = [concat!("todo", "!("), concat!("unimplemented", "!(")];
const MACHINE_PATHS: [&str; 3] =
    [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/")];

/// Fails with every finding.
pub(crate) fn check() -> Result<()> {
    let files = repository_files()?;
    let mut findings = Vec::new();
    for file in &files {
        findings.extend(judge(file));
    }
    findings.extend(crates_without_readme(&files));
    findings.extend(formats_without_test(&files));
    findings.extend(pages_without_summary(&files));
    ensure!(findings.is_empty(), "{}", findings.join("; "));
    Ok(())
}

fn repository_files() -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--exclude-standard"])
        .output()
        .context("git ls-files")?;
    ensure!(
        output.status.success(),
        "git ls-files failed: this check reads the repository's list of files"
    );
    let files = String::from_utf8(output.stdout)?
        .lines()
        .map(str::to_owned)
        .filter(|file| Path::new(file).exists())
        .collect();
    Ok(files)
}

fn judge(file: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let bytes = fs::read(file).unwrap_or_default();
    if bytes.len() as u64 > FILE_BYTES_MAX {
        findings.push(format!("{file} has {} bytes, {FILE_BYTES_MAX} are allowed", bytes.len()));
    }
    let Ok(text) = String::from_utf8(bytes) else { return findings };
    let unfinished =
        UNFINISHED.iter().filter(|word| file.ends_with(".rs") && text.contains(**word));
    findings.extend(unfinished.map(|word| format!("{file} contains {word}")));
    let paths = MACHINE_PATHS.iter().filter(|path| text.contains(**path));
    findings.extend(paths.map(|path| format!("{file} names {path}, a path of one machine")));
    findings
}

fn crates_without_readme(files: &[String]) -> Vec<String> {
    let manifests = files.iter().filter(|file| file.ends_with("/Cargo.toml"));
    let homes = manifests.map(|file| file.trim_end_matches("Cargo.toml"));
    homes
        .filter(|home| !Path::new(home).join("README.md").exists())
        .map(|home| format!("{home} has no README.md"))
        .collect()
}

fn formats_without_test(files: &[String]) -> Vec<String> {
    let named = |page: &str| {
        let sources = files.iter().filter(|file| file.ends_with(".rs"));
        sources
            .into_iter()
            .any(|file| fs::read_to_string(file).is_ok_and(|text| text.contains(page)))
    };
    let pages = files.iter().filter(|file| file.starts_with("docs/formats/"));
    pages
        .filter(|page| !named(page))
        .map(|page| format!("no source names {page}: the test of its bytes should"))
        .collect()
}

fn pages_without_summary(files: &[String]) -> Vec<String> {
    let summary = fs::read_to_string("docs/SUMMARY.md").unwrap_or_default();
    let pages = files
        .iter()
        .filter_map(|file| file.strip_prefix("docs/"))
        .filter(|page| page.ends_with(".md") && *page != "SUMMARY.md");
    pages
        .filter(|page| !summary.contains(&format!("({page})")))
        .map(|page| format!("docs/{page} is not in docs/SUMMARY.md"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::judge;

    #[test]
    fn a_finding_names_its_file_and_reason() {
        let path = std::env::temp_dir().join(format!("tidy-{}.rs", std::process::id()));
        std::fs::write(&path, concat!("fn f() { todo", "!() } // /ho", "me/somebody")).unwrap();
        let findings = judge(path.to_str().unwrap());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(findings.len(), 2, "{findings:?}");
    }
}
