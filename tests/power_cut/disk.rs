//! A disk whose power can be cut: an ext4 image behind a loop device.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

const IMAGE_SIZE: &str = "96M";

/// Most copies that are tried for one that is what a disk can hold.
const COPIES_MAX: u32 = 200;

/// A mounted image; unmounted and removed when dropped.
pub(crate) struct Disk {
    dir: TempDir,
    root: PathBuf,
}

/// An image that is not mounted.
pub(crate) struct Image {
    dir: TempDir,
}

impl Disk {
    /// An empty filesystem.
    pub(crate) fn format() -> Result<Self, String> {
        let image = Image::new();
        let path = image.path();
        run(Command::new("truncate").args(["-s", IMAGE_SIZE]).arg(&path))?;
        let all_at_once = "lazy_itable_init=0,lazy_journal_init=0";
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-E", all_at_once]).arg(&path))?;
        image.mount()
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What the disk holds now, of a filesystem that goes on.
    ///
    /// A disk that caches writes may hold any of those since its last flush. So a copy that takes time is a state that
    /// the disk can have, unless a flush ended meanwhile: then it is made again.
    pub(crate) fn image_at_this_instant(&self) -> Image {
        let copy = Image::new();
        for _ in 0..COPIES_MAX {
            let flushes = self.flushes();
            run(Command::new("cp")
                .arg("--sparse=always")
                .args([self.dir.path().join("image"), copy.path()]))
            .expect("the image can be copied");
            if self.flushes() == flushes {
                return copy;
            }
        }
        panic!("the disk was flushed during each of {COPIES_MAX} copies");
    }

    /// Leaves the image for whoever looks into a failure, and says where.
    pub(crate) fn keep(&mut self) -> String {
        self.dir.disable_cleanup(true);
        format!("the disk is kept in {}", self.dir.path().display())
    }

    /// How many flushes the loop device has done.
    fn flushes(&self) -> u64 {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("it is always there");
        let root = self.root.to_string_lossy();
        let device = mounts.lines().find_map(|line| {
            let mut words = line.split(' ');
            let device = words.next()?.strip_prefix("/dev/")?;
            (words.next()? == root).then_some(device)
        });
        let device = device.expect("the disk is mounted");
        let stat = std::fs::read_to_string(format!("/sys/block/{device}/stat"))
            .expect("a loop device has statistics");
        let flushes = stat.split_whitespace().nth(15);
        flushes.and_then(|count| count.parse().ok()).expect("Linux 5.5 and later count flushes")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for _ in 0..50 {
            if run(Command::new("umount").arg(&self.root)).is_ok() {
                return;
            }
            // A killed child or a store just closed may hold a file for a moment.
            sleep(Duration::from_millis(20));
        }
        // In a drop that may be part of a panic there is nobody left to tell.
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.root));
    }
}

impl Image {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("onceward-power-cut-")
            .tempdir()
            .expect("a temporary directory can be made");
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Mounts it as after a power cut: ext4 replays its journal.
    pub(crate) fn mount(self) -> Result<Disk, String> {
        let root = self.dir.path().join("root");
        std::fs::create_dir(&root).map_err(|error| error.to_string())?;
        run(Command::new("mount")
            .args(["-t", "ext4", "-o", "loop,noatime"])
            .args([&self.path(), &root]))?;
        Ok(Disk { dir: self.dir, root })
    }
}

/// Runs a tool to its end.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}", said.trim()))
}
