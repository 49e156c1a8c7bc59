//! A small seeded generator for the decoders' tests: the same seed gives the same bytes on every machine.
//!
//! Used by tests alone; quality of the numbers does not matter, repeatability does.

/// A xorshift generator.
pub(super) struct Seeded(u64);

impl Seeded {
    /// Starts at `seed`; zero is moved, because xorshift would stay there.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`, which is above zero.
    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    /// Up to `length_max` bytes, drawn from pieces that a decoder is sensitive to and from noise.
    pub(super) fn bytes(&mut self, length_max: usize, pieces: &[&[u8]]) -> Vec<u8> {
        let length = self.below(length_max + 1);
        let mut bytes = Vec::new();
        while bytes.len() < length {
            if self.below(4) == 0 {
                bytes.push(self.next().to_le_bytes()[0]);
            } else {
                bytes.extend_from_slice(pieces[self.below(pieces.len())]);
            }
        }
        bytes.truncate(length);
        bytes
    }

    /// `bytes` with a few of them changed, removed or doubled.
    pub(super) fn mutated(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                return bytes;
            }
            let at = self.below(bytes.len());
            match self.below(3) {
                0 => bytes[at] = self.next().to_le_bytes()[0],
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, bytes[at]),
            }
        }
        bytes
    }
}
