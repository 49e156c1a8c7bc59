//! Memory that goes by descriptor, mapped; and what is done with bytes, so that both ends have really had them.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::Result;

/// A descriptor's memory.
pub struct Mapping {
    fd: OwnedFd,
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    /// Maps what is there already; written only if it is `shared`.
    pub fn of(fd: OwnedFd, length: usize, shared: bool) -> Result<Self> {
        let (protection, flags) = match shared {
            true => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
            false => (ProtFlags::READ, MapFlags::PRIVATE),
        };
        // SAFETY: the kernel chooses where, so nothing that is there already is replaced.
        let start = unsafe { mmap(null_mut(), length, protection, flags, &fd, 0) }?;
        let start = NonNull::new(start.cast()).ok_or("mapped at nothing")?;
        Ok(Self { fd, start, length })
    }

    /// Makes some that can be lent: its size is fixed, and it is in memory already.
    pub fn lent(length: usize) -> Result<Self> {
        let fd = memfd_create("bench", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, length as u64)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let mut made = Self::of(fd, length, true)?;
        made.bytes_mut().fill(1);
        Ok(made)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for as long as this lives, of this length, and its size is sealed; nobody writes it while it is this end's.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and only what is mapped shared and writable is written.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped so by `of`, and no slice of it outlives it.
        if let Err(errno) = unsafe { munmap(self.start.as_ptr().cast(), self.length) } {
            eprintln!("unmap memory: {errno}");
        }
    }
}

/// Whoever takes bytes and gives as many back: what it keeps between two times.
#[derive(Default)]
pub struct Taker {
    /// Memory that comes again is mapped already.
    lent: BTreeMap<u64, Mapping>,
    own: Vec<u8>,
}

impl Taker {
    /// Reads all of this memory and, if it is lent, writes other bytes there. The sum of what was read.
    pub fn turn(&mut self, fd: OwnedFd, length: usize, shared: bool) -> Result<u64> {
        self.own.resize(length, 7);
        let key = fstat(&fd)?.st_ino;
        let kept = shared.then(|| self.lent.remove(&key)).flatten();
        let mut memory = match kept {
            Some(known) => known,
            None => Mapping::of(fd, length, shared)?,
        };
        let read = sum(memory.bytes());
        if shared {
            memory.bytes_mut().copy_from_slice(&self.own);
            self.lent.insert(key, memory);
        }
        Ok(read)
    }
}

/// Sends bytes, with a descriptor beside the first if there is one.
pub fn pass(socket: impl AsFd, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<()> {
    let fds = fd.map(|fd| [fd]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives once, and the descriptor that came along.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let passed = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    Ok((received.bytes, passed))
}

/// Immutable memory with these bytes, made anew.
pub fn fresh(bytes: &[u8]) -> Result<OwnedFd> {
    let fd = memfd_create("bench", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut written = 0;
    while written < bytes.len() {
        written += rustix::io::pwrite(&fd, &bytes[written..], written as u64)?;
    }
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(fd)
}

/// All bytes, read.
pub fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_ne_bytes));
    words.fold(0, u64::wrapping_add)
}
