//! Ports that workers are told: a range of numbers that is cut into pieces, one for each living worker.
//!
//! Decides the text and the arithmetic alone; who has which piece is the daemon's knowledge.

/// How many ports a worker is told where nothing else is written.
const EACH: u16 = 10;

/// The ports of a pool's workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
    /// How many of them each worker is told.
    pub each: u16,
}

impl Ports {
    /// Reads `20000-29999`, ten for each worker, or `20000-29999/100`.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "ports such as 20000-29999, or 20000-29999/100 for a hundred to each worker";
        let (range, each) = text.split_once('/').map_or((text, None), |(range, each)| (range, Some(each)));
        let (first, last) = range.split_once('-').ok_or(EXPECTED)?;
        let number = |text: &str| text.parse::<u16>().ok().filter(|number| *number > 0 && number.to_string() == text);
        let each = each.map_or(Some(EACH), number).ok_or(EXPECTED)?;
        let (first, last) = number(first).zip(number(last)).ok_or(EXPECTED)?;
        let ports = Self { first, last, each };
        if first <= last && ports.pieces().next().is_some() { Ok(ports) } else { Err(EXPECTED) }
    }

    /// The pieces, each by its first port and its last.
    pub fn pieces(self) -> impl Iterator<Item = (u16, u16)> {
        let step = usize::from(self.each.max(1));
        (self.first..=self.last).step_by(step).filter_map(move |first| {
            let last = first.checked_add(self.each.saturating_sub(1))?;
            (last <= self.last).then_some((first, last))
        })
    }

    /// How many workers it is enough for.
    #[must_use]
    pub fn count(self) -> u32 {
        (u32::from(self.last) + 1 - u32::from(self.first)) / u32::from(self.each.max(1))
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}/{}", self.first, self.last, self.each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_into_whole_pieces() {
        let of = |text: &str| Ports::parse(text).unwrap().pieces().collect::<Vec<_>>();
        assert_eq!(of("20000-20029"), [(20_000, 20_009), (20_010, 20_019), (20_020, 20_029)]);
        assert_eq!(of("20000-20008/4"), [(20_000, 20_003), (20_004, 20_007)]);
        assert_eq!(of("65534-65535/1"), [(65_534, 65_534), (65_535, 65_535)]);
        for text in ["20000-20029", "20000-20008/4", "65534-65535/1", "1-65535/65535"] {
            let ports = Ports::parse(text).unwrap();
            assert_eq!(ports.pieces().count(), usize::try_from(ports.count()).unwrap(), "{text}");
            assert_eq!(Ports::parse(&ports.to_string()), Ok(ports));
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in [
            "",
            "20000",
            "20000-",
            "-20000",
            "0-10",
            "20000-19999",
            "20000-20008",
            "1-65536",
            "1-20/0",
            "1-20/x",
            "+1-20",
            "01-20",
        ] {
            assert!(Ports::parse(text).is_err(), "{text:?}");
        }
    }
}
