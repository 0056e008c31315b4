//! Checks that every edge between our crates is one that `docs/layers.txt` allows. Development dependencies are free.

use anyhow::{Context, Result, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand};
use std::collections::BTreeMap;
use std::fs;

/// Fails with every forbidden edge.
pub(crate) fn check() -> Result<()> {
    let table = fs::read_to_string("docs/layers.txt").context("reading docs/layers.txt")?;
    let allowed = parse(&table);
    let workspace = MetadataCommand::new().no_deps().exec()?;
    let mut wrong = Vec::new();
    for package in &workspace.packages {
        if !package.manifest_path.starts_with(workspace.workspace_root.join("crates")) {
            continue;
        }
        let name = short(&package.name);
        let Some(may_use) = allowed.get(name) else {
            wrong.push(format!("{name} has no line in docs/layers.txt"));
            continue;
        };
        let edges = package
            .dependencies
            .iter()
            .filter(|edge| edge.path.is_some() && edge.kind != DependencyKind::Development);
        wrong.extend(
            edges
                .map(|edge| short(&edge.name))
                .filter(|used| !may_use.contains(used))
                .map(|used| format!("{name} may not use {used}")),
        );
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

fn parse(table: &str) -> BTreeMap<&str, Vec<&str>> {
    let lines =
        table.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(':'));
    lines.map(|(name, deps)| (name.trim(), deps.split_whitespace().collect())).collect()
}

fn short(package: &str) -> &str {
    package.strip_prefix("ashlar-").unwrap_or(package)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn comments_are_no_crates() {
        let table = parse("# crate: edges\nhost: types\ntypes:\n");
        assert_eq!(table.keys().copied().collect::<Vec<_>>(), ["host", "types"]);
        assert_eq!(table["host"], ["types"]);
    }
}
