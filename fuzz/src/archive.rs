//! Tar archives: whatever bytes they are, entries stay below the target, contents are as long as was said, and nothing depends
//! on how the bytes come.

use std::io::Read;

use halsup::archive::{Entries, Entry, EntryKind};

const ENTRIES_MAX: u64 = 100;

/// Gives one byte at a time.
struct Slow<'d>(&'d [u8]);

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = buffer.len().min(1);
        self.0.read(&mut buffer[..count])
    }
}

/// Bytes as a tar.
///
/// # Panics
/// When a promise is broken.
pub fn archive(data: &[u8]) {
    let data = with_sums(data);
    let whole = read(data.as_slice());
    assert_eq!(whole, read(Slow(&data)), "it depends on how the bytes come");
    let (entries, _) = whole;
    assert!(entries.len() as u64 <= ENTRIES_MAX);
    let needed: usize = entries.iter().map(|(_, content)| 512 + content.len()).sum();
    assert!(needed <= data.len(), "more came out than went in");
    for (entry, content) in &entries {
        assert_eq!(entry.size, content.len() as u64, "a content is not as long as was said");
        assert!(is_below(&entry.name), "{:?}", entry.name);
        assert!(entry.kind == EntryKind::Directory || !entry.name.is_empty(), "only a directory is the target");
        match &entry.kind {
            EntryKind::Regular => {}
            EntryKind::HardLink(target) => assert!(is_below(target), "{target:?}"),
            EntryKind::Symlink(target) => {
                assert!(!target.is_empty() && target.len() <= 4095 && !target.contains(&0), "{target:?}");
            }
            EntryKind::Device | EntryKind::Directory | EntryKind::Fifo => {}
        }
        assert!(entry.mode <= 0o7777);
        assert!(entry.kind == EntryKind::Regular || entry.size == 0, "only files have content");
    }
}

/// All entries with their contents, and how it ended.
fn read(input: impl Read) -> (Vec<(Entry, Vec<u8>)>, Option<String>) {
    let mut entries = Entries::new(input, ENTRIES_MAX);
    let mut all = Vec::new();
    loop {
        let entry = match entries.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => return (all, None),
            Err(refusal) => return (all, Some(refusal.to_string())),
        };
        let mut content = Vec::new();
        let mut buffer = [0; 700];
        loop {
            match entries.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => content.extend_from_slice(&buffer[..count]),
                // Cut short: this one is none.
                Err(refusal) => return (all, Some(refusal.to_string())),
            }
        }
        all.push((entry, content));
    }
}

/// What a name may be, written down once more.
fn is_below(name: &[u8]) -> bool {
    let part =
        |part: &[u8]| !part.is_empty() && part.len() <= 255 && part != b"." && part != b".." && !part.contains(&0);
    name.is_empty() || name.len() <= 4096 && name.split(|byte| *byte == b'/').all(part)
}

/// The bytes with right checksums in whatever could be a header: else nearly all of them would end there.
fn with_sums(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for block in data.chunks_exact_mut(512).filter(|block| block[257..].starts_with(b"ustar")) {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    data
}
