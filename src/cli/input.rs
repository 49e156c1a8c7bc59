//! What `halsup call --input` sends to its request: each line of a file is a chunk, any JSON, sent as the worker takes it.
//!
//! Never waits for the file by itself: whoever sends asks for the next chunk, and reads when there is something to read.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::call::{JSON_BYTES_MAX, VALUE_BYTES_MAX, in_payload, is_standard, sealed};
use super::error::Error;
use super::human;
use crate::protocol::control::{Request, SendChunkRequest, SentPayload};

/// How much is read at once, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// A message on its way, and the memory that goes beside its first byte.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) bytes: Vec<u8>,
    pub(super) memory: Option<OwnedFd>,
    /// How much of it has gone.
    pub(super) sent: usize,
}

/// The lines of a file, some of which may not be there yet.
#[derive(Debug)]
pub(super) struct Input {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    /// Bytes before this were taken.
    start: usize,
    /// No line ends between `start` and this.
    scanned: usize,
    line: u64,
    read_up: bool,
    over: bool,
}

impl Input {
    /// Opens a file, or standard input for `-`.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let file = if is_standard(path) {
            std::io::stdin().as_fd().try_clone_to_owned().map(File::from)
        } else {
            File::open(path)
        };
        let path = if is_standard(path) { PathBuf::from("standard input") } else { path.to_owned() };
        let file = file.map_err(|source| Error::ReadFile { path: path.clone(), source })?;
        let (start, scanned, line, read_up, over) = (0, 0, 0, false, false);
        Ok(Self { path, file, buffer: Vec::new(), start, scanned, line, read_up, over })
    }

    /// What to wait for where no whole line is here.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether its end was given out.
    pub(super) const fn is_over(&self) -> bool {
        self.over
    }

    /// The message of the next line, and behind the last one that of the end; `None` until more is read.
    ///
    /// # Errors
    /// The line is no JSON.
    pub(super) fn next(&mut self) -> Result<Option<Outgoing>, Error> {
        while !self.over {
            let rest = self.buffer.get(self.scanned..).unwrap_or_default();
            let Some(end) = rest.iter().position(|byte| *byte == b'\n').map(|offset| self.scanned + offset) else {
                self.scanned = self.buffer.len();
                if !self.read_up {
                    return Ok(None);
                }
                if self.start < self.buffer.len() {
                    // The last line need not end.
                    self.buffer.push(b'\n');
                    continue;
                }
                self.over = true;
                return message(SendChunkRequest { end: Some(true), ..SendChunkRequest::default() }, None).map(Some);
            };
            let line = self.buffer.get(self.start..end).unwrap_or_default().trim_ascii().to_vec();
            (self.start, self.scanned, self.line) = (end + 1, end + 1, self.line + 1);
            if !line.is_empty() {
                return self.chunk(&line).map(Some);
            }
        }
        Ok(None)
    }

    /// Reads what there is, once.
    ///
    /// # Errors
    /// It cannot be read, or one line is longer than can be sent.
    pub(super) fn fill(&mut self) -> Result<(), Error> {
        self.buffer.drain(..self.start);
        (self.start, self.scanned) = (0, self.scanned - self.start);
        if u64::try_from(self.buffer.len()).is_ok_and(|length| length > JSON_BYTES_MAX) {
            let (number, path) = (self.line + 1, self.path.display());
            let reason = format!("line {number} of {path} is longer than {}", human::bytes(JSON_BYTES_MAX));
            return Err(Error::Usage { reason });
        }
        let mut read = [0; READ_BYTES];
        match self.file.read(&mut read) {
            Ok(0) => self.read_up = true,
            Ok(length) => self.buffer.extend_from_slice(read.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::ReadFile { path: self.path.clone(), source }),
        }
        Ok(())
    }

    fn chunk(&self, line: &[u8]) -> Result<Outgoing, Error> {
        let value: Value = serde_json::from_slice(line).map_err(|error| {
            let reason = format!("line {} of {} is not JSON: {error}", self.line, self.path.display());
            Error::Usage { reason }
        })?;
        // What counts is how long it is when it is written without blanks.
        let written = value.to_string();
        if written.len() <= VALUE_BYTES_MAX {
            return message(SendChunkRequest { chunk: Some(value), ..SendChunkRequest::default() }, None);
        }
        let failed = |source| Error::ReadFile { path: self.path.clone(), source };
        let memory = sealed(|memory| memory.write_all(written.as_bytes())).map_err(failed)?;
        let payload = SentPayload { bytes: u64::try_from(written.len()).unwrap_or(u64::MAX), shared: None };
        let chunk = SendChunkRequest { chunk: Some(in_payload()), payload: Some(payload), end: None };
        message(chunk, Some(memory))
    }
}

fn message(chunk: SendChunkRequest, memory: Option<OwnedFd>) -> Result<Outgoing, Error> {
    let mut call = Request::SendChunk(chunk).to_call();
    call.oneway = true;
    Ok(Outgoing { bytes: call.encode(), memory, sent: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> (Input, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        (Input::open(file.path()).unwrap(), file)
    }

    /// What is sent of a file, up to the end or the first line that is none.
    fn sent(text: &str) -> (Vec<Value>, Option<String>) {
        let (mut input, _file) = lines(text);
        let mut said = Vec::new();
        loop {
            match input.next() {
                Ok(Some(out)) => {
                    let call: Value = serde_json::from_slice(out.bytes.strip_suffix(b"\0").unwrap()).unwrap();
                    assert_eq!(
                        (&call["method"], &call["oneway"]),
                        (&"io.halsup.Control.SendChunk".into(), &true.into())
                    );
                    said.push(call["parameters"].clone());
                }
                Ok(None) if input.is_over() => return (said, None),
                Ok(None) => input.fill().unwrap(),
                Err(error) => return (said, Some(error.sentence())),
            }
        }
    }

    #[test]
    fn each_line_is_a_chunk_and_the_end_comes_behind_the_last() {
        let end = serde_json::json!({ "end": true });
        let chunk = |value: Value| serde_json::json!({ "chunk": value });
        assert_eq!(sent(""), (vec![end.clone()], None));
        assert_eq!(sent("\n \n"), (vec![end.clone()], None));
        let both = vec![chunk(1.into()), chunk(serde_json::json!({ "a": [2] })), end.clone()];
        assert_eq!(sent("1\n{\"a\": [2]}"), (both.clone(), None));
        assert_eq!(sent(" 1 \r\n\n{\"a\": [2]}\n"), (both, None));
        let many: String = (0..20_000).map(|number| format!("{number}\n")).collect();
        let (said, error) = sent(&many);
        assert_eq!((said.len(), error, said.last()), (20_001, None, Some(&end)));
        assert!(said.iter().take(20_000).enumerate().all(|(number, said)| *said == chunk(number.into())));
    }

    #[test]
    fn a_line_that_is_no_json_is_named_and_ends_it() {
        let (said, error) = sent("1\n\nx\n2\n");
        assert_eq!(said.len(), 1);
        assert!(error.as_ref().is_some_and(|error| error.contains("line 3 of")), "{error:?}");
    }

    #[test]
    fn a_line_that_no_frame_holds_goes_as_memory() {
        let (mut input, _file) = lines(&format!("\"{}\"\n", "x".repeat(VALUE_BYTES_MAX)));
        let out = loop {
            match input.next().unwrap() {
                Some(out) => break out,
                None => input.fill().unwrap(),
            }
        };
        let mut text = String::new();
        File::from(out.memory.unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text.len(), VALUE_BYTES_MAX + 2);
        assert!(out.bytes.len() < 300 && String::from_utf8(out.bytes).unwrap().contains("halsup.payload"));
    }
}
