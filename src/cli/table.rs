//! Tables without borders: a header, rows, two spaces between columns. Every cell is escaped here.

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, ContentArrangement, Table};

use crate::protocol::escape;

/// Lays out `rows` under `header`; only the header where there are no rows.
pub(super) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for row in rows {
        table.add_row(row.iter().map(|cell| Cell::new(escape::text(cell))));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// Lays out names and values, one pair a line; pairs without a value are left out.
pub(super) fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, Option<String>)>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in pairs {
        if let Some(value) = value {
            table.add_row([Cell::new(format!("{name}:")), Cell::new(escape::text(&value))]);
        }
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_line_up_and_cannot_drive_a_terminal() {
        let rows = [["web.0".into(), "\u{1b}[2Jx\ny".into()], ["x".into(), String::new()]];
        assert_eq!(table(["NAME", "STATUS"], rows), "NAME   STATUS\nweb.0  \\x1b[2Jx\\ny\nx\n");
        assert_eq!(pairs([("a", Some("1".into())), ("b", None), ("long", Some("2".into()))]), "a:     1\nlong:  2\n");
    }
}
