//! What the harness asks of the machine: commands, mounts, loop devices, the file system's shutdown.
//!
//! Everything a harness makes lies in one directory, named by a prefix of the harness and its process: so what an earlier
//! run left behind (because it was killed) is found by name and removed, in the reverse order of its making.

use anyhow::{Context, Result, bail, ensure};
use rustix::ioctl::{Opcode, Setter, ioctl};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A mount that stays busy for longer than this is a finding.
const UMOUNT_PATIENCE: Duration = Duration::from_secs(20);
/// EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are the same.
const SHUTDOWN: Opcode = 0x8004_587d;
/// What is not in the journal on disk by now stays out of it.
const NO_LOG_FLUSH: u32 = 2;

/// Why this machine cannot cut power; none where it can.
pub fn cannot() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root may mount file systems".to_owned());
    }
    let missing =
        ["/dev/loop-control", "/dev/fuse"].into_iter().find(|path| !Path::new(path).exists());
    if let Some(path) = missing {
        return Some(format!("there is no {path}"));
    }
    let programs = ["mount", "umount", "losetup", "mkfs.ext4"];
    programs.into_iter().find(|name| !has(name)).map(|name| format!("there is no {name}"))
}

/// Whether a program is installed.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

/// Runs a command to its end; says what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "{command:?} ended with {}: {said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Gives a file a loop device.
pub fn attach(image: &Path, sector_bytes: usize) -> Result<PathBuf> {
    let sector_bytes = sector_bytes.to_string();
    let device = run(Command::new("losetup")
        .args(["--find", "--show", "--sector-size", &sector_bytes])
        .arg(image))?;
    Ok(PathBuf::from(device))
}

/// Takes it away again.
pub fn detach(device: &Path) -> Result<()> {
    run(Command::new("losetup").arg("--detach").arg(device)).map(drop)
}

/// The file system forgets what is not on stable storage and fails from now on.
#[expect(unsafe_code, reason = "the one system call for which there is no safe wrapper")]
pub fn shut_down(mount: &Path) -> Result<()> {
    let dir = File::open(mount)?;
    // SAFETY: the call reads one u32 behind the pointer that `Setter` passes, and writes nothing.
    unsafe { ioctl(&dir, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }
        .with_context(|| format!("shutting down {}", mount.display()))
}

/// Unmounts as soon as nobody uses it any more.
pub fn umount(mount: &Path) -> Result<()> {
    let began = Instant::now();
    loop {
        match run(Command::new("umount").arg(mount)) {
            Ok(_) => return Ok(()),
            Err(error) if began.elapsed() > UMOUNT_PATIENCE => return Err(error),
            // a process that was just killed still holds its files for a moment
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Directories that earlier runs left below one: each is named by the prefix and a process that is gone.
pub fn leftovers(home: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(home)?;
    let mut left = Vec::new();
    for entry in std::fs::read_dir(home)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let Some(pid) = name.as_deref().and_then(|name| name.strip_prefix(prefix)) else {
            continue;
        };
        if !runs(pid, prefix.trim_end_matches('-')) {
            left.push(path);
        }
    }
    Ok(left)
}

/// Whether a process is the program of this name. One that is dead has no command line, also while nobody has reaped it,
/// and its number may have gone to another program.
fn runs(pid: &str, program: &str) -> bool {
    let command = std::fs::read(Path::new("/proc").join(pid).join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&command).contains(program)
}

/// Unmounts, detaches and removes everything that lies in a run's directory.
pub fn tear_down(dir: &Path) -> Result<()> {
    let dir = std::path::absolute(dir)?;
    for mount in mounts_below(&dir)?.iter().rev() {
        // the file system may be one that was cut: lazily, whatever state it is in
        run(Command::new("umount").arg("--lazy").arg(mount))?;
        for device in loop_devices_below(&dir)? {
            detach(&device)?;
        }
    }
    for device in loop_devices_below(&dir)? {
        detach(&device)?;
    }
    if !mounts_below(&dir)?.is_empty() {
        bail!("{} still holds mounts", dir.display());
    }
    std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))
}

fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mounts")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(dir)).collect())
}

fn loop_devices_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let table = run(Command::new("losetup").args([
        "--list",
        "--noheadings",
        "--raw",
        "--output",
        "NAME,BACK-FILE",
    ]))?;
    let lines = table.lines().filter_map(|line| line.split_once(' '));
    Ok(lines
        .filter(|(_, image)| Path::new(image).starts_with(dir))
        .map(|(device, _)| PathBuf::from(device))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_run_left_is_found_and_what_a_living_one_has_is_not() {
        let home = tempfile::tempdir().unwrap();
        let own = std::process::id();
        for name in [format!("ashlar_powercut-{own}"), "ashlar_powercut-0".into(), "other-0".into()]
        {
            std::fs::create_dir(home.path().join(name)).unwrap();
        }
        // the program of this test is named like its crate
        let left = leftovers(home.path(), "ashlar_powercut-").unwrap();
        assert_eq!(left, [home.path().join("ashlar_powercut-0")]);
    }
}
