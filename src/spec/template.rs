//! `{port}`, `{slot}`, `{worker}`, `{instance}` and `{dir}` in commands and environments.
//!
//! Owns the grammar: a placeholder is a known word in braces, `{{` and `}}` are literal braces, any other brace is an
//! error, so that nothing is replaced or left alone by surprise. `config` checks every template once; `daemon` calls
//! [`expand`] for each worker.

use super::scalar::ScalarError;

/// What the placeholders stand for in one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placeholders<'a> {
    /// `{port}`: the pool's base port plus the slot; a checked template names it only if the pool has one.
    pub port: Option<u16>,
    /// `{slot}`: the place in the pool, from 0.
    pub slot: u32,
    /// `{worker}`: the name, such as `web.3`, or `chromadb` for a service.
    pub worker: &'a str,
    /// `{instance}`: which halsup it is.
    pub instance: &'a str,
    /// `{dir}`: the worker's own directory, as seen from inside.
    pub dir: &'a str,
}

/// The words that may stand in braces.
const WORDS: [(&str, Word); 5] = [
    ("port", Word::Port),
    ("slot", Word::Slot),
    ("worker", Word::Worker),
    ("instance", Word::Instance),
    ("dir", Word::Dir),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Port,
    Slot,
    Worker,
    Instance,
    Dir,
}

#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    Brace(char),
    Word(Word),
    Stray(&'a str),
}

/// Splits off the first piece; `None` at the end.
fn piece(template: &str) -> Option<(Piece<'_>, &str)> {
    let at = template.find(['{', '}']).unwrap_or(template.len());
    if at > 0 {
        return Some((Piece::Text(template.get(..at)?), template.get(at..)?));
    }
    for (escaped, brace) in [("{{", '{'), ("}}", '}')] {
        if let Some(rest) = template.strip_prefix(escaped) {
            return Some((Piece::Brace(brace), rest));
        }
    }
    if let Some((inner, rest)) = template.strip_prefix('{').and_then(|rest| rest.split_once('}'))
        && let Some((_, word)) = WORDS.iter().find(|(name, _)| *name == inner)
    {
        return Some((Piece::Word(*word), rest));
    }
    let end = template.find('}').map_or(template.len(), |at| at + 1);
    let stray = template.get(..end).filter(|stray| !stray.is_empty())?;
    Some((Piece::Stray(stray), template.get(end..)?))
}

fn pieces(mut template: &str) -> impl Iterator<Item = Piece<'_>> {
    std::iter::from_fn(move || {
        let (piece, rest) = piece(template)?;
        template = rest;
        Some(piece)
    })
}

/// Whether `template` names `{port}`; an error names the first brace that is neither placeholder nor escape.
pub(super) fn names_port(template: &str) -> Result<bool, ScalarError> {
    let mut port = false;
    for piece in pieces(template) {
        match piece {
            Piece::Stray(stray) => {
                let expected = "{port}, {slot}, {worker}, {instance}, {dir}, or {{ and }} for literal braces";
                return Err(ScalarError::new(stray, expected));
            }
            Piece::Word(Word::Port) => port = true,
            Piece::Word(Word::Slot | Word::Worker | Word::Instance | Word::Dir) | Piece::Text(_) | Piece::Brace(_) => {}
        }
    }
    Ok(port)
}

/// Replaces the placeholders of a template that was checked. Text that is no placeholder stays as it is.
#[must_use]
pub fn expand(template: &str, placeholders: &Placeholders<'_>) -> String {
    let mut out = String::with_capacity(template.len());
    for piece in pieces(template) {
        match piece {
            Piece::Text(text) | Piece::Stray(text) => out.push_str(text),
            Piece::Brace(brace) => out.push(brace),
            Piece::Word(Word::Worker) => out.push_str(placeholders.worker),
            Piece::Word(Word::Instance) => out.push_str(placeholders.instance),
            Piece::Word(Word::Dir) => out.push_str(placeholders.dir),
            Piece::Word(Word::Port) => {
                if let Some(port) = placeholders.port {
                    out.push_str(&port.to_string());
                }
            }
            Piece::Word(Word::Slot) => out.push_str(&placeholders.slot.to_string()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB_3: Placeholders<'_> =
        Placeholders { port: Some(8003), slot: 3, worker: "web.3", instance: "default", dir: "/work" };

    #[test]
    fn placeholders_are_replaced() {
        for (template, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("{port}", "8003"),
            ("-p{port}:{slot}", "-p8003:3"),
            ("{dir}/{worker}.log", "/work/web.3.log"),
            ("{instance}", "default"),
            ("{{port}}", "{port}"),
            ("{{{port}}}", "{8003}"),
            ("${{HOME}}", "${HOME}"),
            ("ä{slot}ö", "ä3ö"),
            ("{{}}", "{}"),
        ] {
            assert!(names_port(template).is_ok(), "{template}");
            assert_eq!(expand(template, &WEB_3), expected, "{template}");
        }
    }

    #[test]
    fn other_braces_are_refused() {
        for (template, stray) in [
            ("{prot}", "{prot}"),
            ("${HOME}", "{HOME}"),
            ("{}", "{}"),
            ("{ port }", "{ port }"),
            ("{port", "{port"),
            ("port}", "}"),
            ("{", "{"),
            ("{PORT}", "{PORT}"),
            ("{{port}", "}"),
            ("{a{port}}", "{a{port}"),
        ] {
            assert_eq!(names_port(template).unwrap_err().shown, stray, "{template}");
        }
    }

    #[test]
    fn the_port_is_noticed() {
        assert_eq!(names_port("--port={port}"), Ok(true));
        assert_eq!(names_port("{{port}} {slot}"), Ok(false));
    }

    #[test]
    fn a_value_is_never_read_as_a_template() {
        let hostile = Placeholders { worker: "{port}", ..WEB_3 };
        assert_eq!(expand("{worker}", &hostile), "{port}");
    }
}
