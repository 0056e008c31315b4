//! The kernel's FUSE protocol, as far as a loop device over one file needs it.
//!
//! `mount` is given the open `/dev/fuse` as its standard input; requests are read from it and answered one after
//! another by one thread. There is a root directory with one file, `image`, whose reads bypass the page cache, so that
//! what the loop device writes arrives here as it is written, and what it flushes arrives as an fsync.
//!
//! Why own: fifteen messages of fixed layout. The crate `fuser` is good, and brings a dozen more crates whose features
//! would rebuild half of the workspace.
//! Layouts: `include/uapi/linux/fuse.h`, protocol 7.31. Left out: everything that no loop device asks for.

use anyhow::{Context, Result};
use ashlar_powercut::machine::run;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const RELEASEDIR: u32 = 29;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

const IN_HEADER_BYTES: usize = 40;
const WRITE_HEADER_BYTES: usize = 40;
const MAX_WRITE_BYTES: u32 = 1 << 20;
const MAX_PAGES: u16 = 256;
/// FUSE_ASYNC_READ, FUSE_BIG_WRITES and FUSE_MAX_PAGES.
const FLAGS: u32 = 1 | 1 << 5 | 1 << 22;
const FOPEN_DIRECT_IO: u32 = 1;
const ROOT: u64 = 1;
const IMAGE: u64 = 2;
const DIRECTORY_MODE: u32 = 0o040_755;
const FILE_MODE: u32 = 0o100_600;

/// What lies in the file.
pub(crate) trait Device: Send + Sync + 'static {
    /// How long it is.
    fn len(&self) -> u64;
    /// Reads exactly `buffer`.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Takes a write, which is not durable.
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes every write so far durable.
    fn flush(&self) -> io::Result<()>;
}

/// Mounts a file system whose only file, `image`, is the device; the thread ends when it is unmounted.
pub(crate) fn mount(dir: &Path, device: impl Device) -> Result<JoinHandle<io::Result<()>>> {
    let door =
        OpenOptions::new().read(true).write(true).open("/dev/fuse").context("opening /dev/fuse")?;
    let options = "fd=0,rootmode=40000,user_id=0,group_id=0";
    run(Command::new("mount")
        .args(["-i", "-t", "fuse", "-o", options, "ashlar-powercut"])
        .arg(dir)
        .stdin(Stdio::from(door.try_clone()?)))?;
    Ok(std::thread::spawn(move || serve(&door, &device)))
}

/// Answers until the file system is gone.
fn serve(mut door: &File, device: &impl Device) -> io::Result<()> {
    let mut buffer = vec![0; MAX_WRITE_BYTES as usize + 4096];
    loop {
        let length = match door.read(&mut buffer) {
            Ok(length) => length,
            // ENODEV: it is unmounted
            Err(error) if error.raw_os_error() == Some(19) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let Some(request) = Request::parse(&buffer[..length]) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if matches!(request.opcode, FORGET | BATCH_FORGET | INTERRUPT) {
            continue;
        }
        let (error, body) = match answer(&request, device) {
            Ok(body) => (0, body),
            Err(error) => (error.raw_os_error().unwrap_or(EIO), Vec::new()),
        };
        let reply = reply(request.unique, error, &body)?;
        // ENOENT: whoever asked is gone
        match door.write(&reply) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if request.opcode == DESTROY {
            return Ok(());
        }
    }
}

const ENOENT: i32 = 2;
const EIO: i32 = 5;
const ENOSYS: i32 = 38;

struct Request<'a> {
    opcode: u32,
    unique: u64,
    node: u64,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let body = bytes.get(IN_HEADER_BYTES..)?;
        Some(Self {
            opcode: u32_at(bytes, 4)?,
            unique: u64_at(bytes, 8)?,
            node: u64_at(bytes, 16)?,
            body,
        })
    }

    /// Offset and size, which READ and WRITE have at the same place.
    fn extent(&self) -> io::Result<(u64, usize)> {
        let offset = u64_at(self.body, 8);
        let size = u32_at(self.body, 16).and_then(|size| usize::try_from(size).ok());
        offset.zip(size).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn answer(request: &Request<'_>, device: &impl Device) -> io::Result<Vec<u8>> {
    match request.opcode {
        INIT => Ok(init()),
        LOOKUP if request.node == ROOT && request.body == b"image\0" => Ok(entry(device.len())),
        LOOKUP => Err(io::Error::from_raw_os_error(ENOENT)),
        GETATTR => Ok(attributes(request.node, device.len())),
        OPEN => Ok(opened(FOPEN_DIRECT_IO)),
        OPENDIR => Ok(opened(0)),
        READ => {
            let (offset, size) = request.extent()?;
            let left = usize::try_from(device.len().saturating_sub(offset)).unwrap_or(size);
            let mut bytes = vec![0; size.min(left)];
            device.read(&mut bytes, offset)?;
            Ok(bytes)
        }
        WRITE => {
            let (offset, size) = request.extent()?;
            let bytes = request.body.get(WRITE_HEADER_BYTES..).unwrap_or_default();
            device.write(&bytes[..size.min(bytes.len())], offset)?;
            let mut body = request.body[16..20].to_vec();
            body.extend([0; 4]);
            Ok(body)
        }
        FSYNC => device.flush().map(|()| Vec::new()),
        FLUSH | RELEASE | RELEASEDIR | DESTROY => Ok(Vec::new()),
        _ => Err(io::Error::from_raw_os_error(ENOSYS)),
    }
}

fn reply(unique: u64, error: i32, body: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(16 + body.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(16 + body.len());
    bytes.extend(length.to_le_bytes());
    bytes.extend((-error).to_le_bytes());
    bytes.extend(unique.to_le_bytes());
    bytes.extend(body);
    Ok(bytes)
}

fn init() -> Vec<u8> {
    let mut bytes = Vec::new();
    // major, minor, max_readahead, flags
    bytes.extend([7, 31, MAX_WRITE_BYTES, FLAGS].into_iter().flat_map(u32::to_le_bytes));
    // max_background, congestion_threshold
    bytes.extend([16_u16, 12].into_iter().flat_map(u16::to_le_bytes));
    // max_write, time_gran
    bytes.extend([MAX_WRITE_BYTES, 1].into_iter().flat_map(u32::to_le_bytes));
    // max_pages, map_alignment
    bytes.extend([MAX_PAGES, 0].into_iter().flat_map(u16::to_le_bytes));
    bytes.resize(64, 0);
    bytes
}

fn opened(flags: u32) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    bytes.extend(flags.to_le_bytes());
    bytes.extend([0; 4]);
    bytes
}

/// Attributes may be kept for an hour: they never change.
const VALID_SECONDS: u64 = 3_600;

fn entry(length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend([IMAGE, 0, VALID_SECONDS, VALID_SECONDS].into_iter().flat_map(u64::to_le_bytes));
    bytes.extend([0; 8]);
    bytes.extend(attribute(IMAGE, length));
    bytes
}

fn attributes(node: u64, length: u64) -> Vec<u8> {
    let mut bytes = VALID_SECONDS.to_le_bytes().to_vec();
    bytes.extend([0; 8]);
    bytes.extend(attribute(node, length));
    bytes
}

fn attribute(node: u64, length: u64) -> Vec<u8> {
    let (mode, size) = if node == ROOT { (DIRECTORY_MODE, 0) } else { (FILE_MODE, length) };
    let mut bytes = Vec::new();
    // ino, size, blocks, three times in seconds
    bytes.extend([node, size, size / 512, 0, 0, 0].into_iter().flat_map(u64::to_le_bytes));
    // three times in nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags
    bytes.extend([0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].into_iter().flat_map(u32::to_le_bytes));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_the_lengths_of_the_kernels_header() {
        assert_eq!(init().len(), 64);
        assert_eq!(entry(1).len(), 128);
        assert_eq!(attributes(ROOT, 1).len(), 104);
        assert_eq!(opened(0).len(), 16);
    }
}
