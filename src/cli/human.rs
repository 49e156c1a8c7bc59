//! Numbers as people read them: sizes, ages, processor time. Whole-number arithmetic alone.

/// A size: `0B`, `1023B`, `1.5K`, `64M`, `2.3G`.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [(u32, &str); 5] = [(50, "P"), (40, "T"), (30, "G"), (20, "M"), (10, "K")];
    for (shift, unit) in UNITS {
        let whole = bytes >> shift;
        if whole > 0 {
            let tenths = ((bytes >> (shift - 10)) & 1023) * 10 / 1024;
            // One decimal where it says something.
            let fraction = if whole < 10 && tenths > 0 { format!(".{tenths}") } else { String::new() };
            return format!("{whole}{fraction}{unit}");
        }
    }
    format!("{bytes}B")
}

/// An age in its two largest units: `0s`, `59s`, `3m12s`, `2h5m`, `4d3h`.
pub(super) fn age(seconds: u64) -> String {
    let pair = |large: u64, unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{small_unit}"),
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => pair(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => pair(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => pair(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// A short time in microseconds: `0us`, `999us`, `1.5ms`, `12.34s`, then as [`age`].
pub(super) fn usec(usec: u64) -> String {
    match usec {
        0..1_000 => format!("{usec}us"),
        1_000..1_000_000 => format!("{}.{}ms", usec / 1_000, usec % 1_000 / 100),
        1_000_000..60_000_000 => format!("{}.{:02}s", usec / 1_000_000, usec % 1_000_000 / 10_000),
        _ => age(usec / 1_000_000),
    }
}

/// A value that may be unknown, as `-`.
pub(super) fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".into(), show)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_true() {
        let shown = [0, 1_023, 1_024, 1_536, 10 * 1_024 + 512, 64 << 20, (23 << 30) / 10, u64::MAX].map(bytes);
        assert_eq!(shown, ["0B", "1023B", "1K", "1.5K", "10K", "64M", "2.2G", "16383P"]);
        let shown = [0, 59, 60, 192, 7_500, 86_400, 356_400].map(age);
        assert_eq!(shown, ["0s", "59s", "1m", "3m12s", "2h5m", "1d", "4d3h"]);
        let shown = [0, 999, 1_500, 12_345_678, 61_000_000].map(usec);
        assert_eq!(shown, ["0us", "999us", "1.5ms", "12.34s", "1m1s"]);
    }
}
