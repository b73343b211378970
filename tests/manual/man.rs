//! Manual pages upcall_<family>(3), made of the header's own text: one for each family of `docs/manual/families.txt`.

use std::collections::BTreeMap;
use std::fmt::Write;

/// The day of the header's last change of substance, as manual pages have it.
const DATE: &str = "2026-11-21";

struct Family {
    name: String,
    title: String,
    symbols: Vec<String>,
}

fn families(table: &str) -> Vec<Family> {
    table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let [name, title, symbols] = line.split('|').collect::<Vec<_>>()[..] else {
                panic!("families.txt: {line}")
            };
            let symbols = symbols.split(' ');
            Family { name: name.into(), title: title.into(), symbols: symbols.flat_map(full_names).collect() }
        })
        .collect()
}

/// An operation stands for its constructor and its kind.
fn full_names(symbol: &str) -> Vec<String> {
    if symbol.to_lowercase().starts_with("upcall_") {
        return vec![symbol.into()];
    }
    vec![format!("upcall_op_{symbol}"), format!("UPCALL_OP_{}", symbol.to_uppercase())]
}

/// What stands below a comment of the header.
struct Item {
    comment: Vec<String>,
    code: String,
}

/// The documented symbols of the header, by name. An undocumented one is an error.
fn items(header: &str) -> BTreeMap<String, Item> {
    let mut items = BTreeMap::new();
    let mut comment = Vec::new();
    let mut lines = header.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("/**") {
            comment = vec![line];
            while !comment.last().expect("a line").ends_with("*/") {
                comment.push(lines.next().expect("the comment ends"));
            }
            continue;
        }
        let is_define = line.to_lowercase().starts_with("#define upcall_") && line != "#define UPCALL_H";
        let is_function = line.contains(" upcall_") || line.contains("*upcall_");
        let is_function = is_function && line.contains('(') && line.starts_with(|c: char| c.is_ascii_lowercase());
        if !(is_define || is_function || line.starts_with("typedef ")) {
            if !line.is_empty() && !line.starts_with("#include") {
                comment.clear(); // the file's own
            }
            continue;
        }
        let mut code = line.to_owned();
        let is_whole = |code: &str| {
            code.starts_with('#') || code.ends_with(';') && code.matches('{').count() == code.matches('}').count()
        };
        while !is_whole(&code) {
            code += "\n";
            code += lines.next().expect("the declaration ends");
        }
        let name = name_of(&code);
        assert!(!comment.is_empty(), "{name} has no documentation in the header");
        let comment = std::mem::take(&mut comment).iter().map(|line| strip(line)).collect();
        items.insert(name, Item { comment, code });
    }
    items
}

fn name_of(code: &str) -> String {
    let start = if let Some(rest) = code.strip_prefix("#define ") {
        rest
    } else if let Some((_, rest)) = code.split_once("(*") {
        rest
    } else if let Some(rest) = code.strip_prefix("typedef struct ") {
        rest
    } else if let Some(rest) = code.strip_prefix("typedef ") {
        rest.split_once(' ').expect("a name").1
    } else {
        let before = code.split('(').next().expect("a function");
        before.rsplit([' ', '*']).next().expect("a name")
    };
    start.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

/// A line of a comment without its frame.
fn strip(line: &str) -> String {
    let line = line.trim();
    let line = line.strip_prefix("/**").or_else(|| line.strip_prefix('*').filter(|_| line != "*/")).unwrap_or(line);
    let line = line.strip_suffix("*/").unwrap_or(line);
    line.trim().to_owned()
}

/// Text of the header as man(7) has it: names of the library bold, what stands between grave accents in italics.
fn text(words: &str) -> String {
    let mut out = String::new();
    for (index, part) in words.split('`').enumerate() {
        let part = part.replace('\\', "\\e").replace('-', "\\-");
        if index % 2 == 1 {
            let _ = write!(out, "\\fI{part}\\fP");
            continue;
        }
        let mut rest = part.as_str();
        while let Some(at) = ["upcall_", "UPCALL_"].iter().filter_map(|name| rest.find(name)).min() {
            let length = rest[at..]
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.')
                .unwrap_or(rest.len() - at);
            let name = rest[at..at + length].trim_end_matches('.');
            out += &rest[..at];
            let _ = write!(out, "\\fB{name}\\fP");
            rest = &rest[at + name.len()..];
            if let Some(after) = rest.strip_prefix("()") {
                out += "()";
                rest = after;
            }
        }
        out += &emphasis(rest);
    }
    let out = out.replace('…', "...");
    if out.starts_with(['.', '\'']) { format!("\\&{out}") } else { out }
}

/// `*word*` in italics, `**word**` bold; a lone star is a star.
fn emphasis(words: &str) -> String {
    let mut out = String::new();
    let mut rest = words;
    while let Some(at) = rest.find('*') {
        let mark = if rest[at..].starts_with("**") { "**" } else { "*" };
        let inner = &rest[at + mark.len()..];
        let is_word = inner.starts_with(|c: char| c.is_ascii_alphabetic());
        let Some(end) = inner.find(mark).filter(|_| is_word) else { break };
        let _ = write!(out, "{}\\f{}{}\\fP", &rest[..at], if mark == "*" { 'I' } else { 'B' }, &inner[..end]);
        rest = &inner[end + mark.len()..];
    }
    out + rest
}

/// A comment's paragraphs.
fn paragraphs(comment: &[String]) -> Vec<String> {
    let joined = comment.join("\n").replace("@brief ", "").replace("@return ", "\n\nReturns ");
    joined
        .split("\n\n")
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|part| !part.is_empty())
        .collect()
}

fn write_paragraphs(page: &mut String, comment: &[String], first: &str, between: &str) {
    for (index, paragraph) in paragraphs(comment).iter().enumerate() {
        page.push_str(if index == 0 { first } else { between });
        *page += &text(paragraph);
        page.push('\n');
    }
}

/// A declaration in bold, its parameters in italics, no line longer than what a terminal shows.
fn prototype(code: &str) -> String {
    let code = code.replace("struct upcall_", "upcall_");
    let code = code.split_whitespace().collect::<Vec<_>>().join(" ").replace("( ", "(");
    let (head, arguments) = code.split_once('(').expect("a function");
    let arguments: Vec<&str> = arguments.trim_end_matches(");").split(", ").collect();
    let mut lines = vec![format!("{head}(")];
    for (index, argument) in arguments.iter().enumerate() {
        let word = format!("{argument}{}", if index + 1 < arguments.len() { "," } else { ");" });
        let line = lines.last_mut().expect("a line");
        if line.len() + 1 + word.len() > 76 && !line.ends_with('(') {
            lines.push(format!("        {word}"));
        } else {
            if !line.ends_with('(') {
                line.push(' ');
            }
            *line += &word;
        }
    }
    let mut out = String::new();
    for line in lines {
        let _ = writeln!(out, "\\fB{}\\fR", italic_names(&line));
    }
    out
}

/// The names before a comma or the closing parenthesis.
fn italic_names(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(end) = rest.find([',', ')']) {
        let start = rest[..end].rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_').map_or(0, |at| at + 1);
        let name = &rest[start..end];
        if name.is_empty() || name == "void" {
            out += &rest[..=end];
        } else {
            let _ = write!(out, "{}\\fI{name}\\fB{}", &rest[..start], &rest[end..=end]);
        }
        rest = &rest[end + 1..];
    }
    out + rest
}

/// The fields of a struct with their comments, or its name alone where it is opaque.
fn write_struct(page: &mut String, item: &Item) {
    let mut comment = Vec::new();
    for line in item.code.lines().skip(1) {
        let line = line.trim();
        if line.starts_with("/**") || line.starts_with('*') {
            comment.push(strip(line));
        } else if line.ends_with(';') && !line.starts_with('}') {
            let field = line.replace("struct upcall_", "upcall_");
            let _ = writeln!(page, ".TP\n\\fB{}\\fR", field);
            write_paragraphs(page, &comment, "", ".IP\n");
            comment.clear();
        }
    }
}

/// The page of a family.
fn page(family: &Family, all: &[Family], items: &BTreeMap<String, Item>, version: &str) -> String {
    let mut page = String::new();
    let upper = family.name.to_uppercase();
    let _ = writeln!(page, ".\\\" Made of include/upcall.h: UPCALL_BLESS=1 cargo test --test header");
    let _ = writeln!(page, ".TH UPCALL_{upper} 3 {DATE} \"Upcall {version}\" \"Upcall\"");
    for name in &family.symbols {
        assert!(items.contains_key(name), "families.txt names {name}, which upcall.h has not");
    }
    let is_type = |name: &String| items[name].code.starts_with("typedef");
    let (functions, others): (Vec<&String>, Vec<&String>) =
        family.symbols.iter().partition(|name| name.starts_with("upcall_") && !is_type(name));
    let others: Vec<&String> = others.into_iter().filter(|name| !name.starts_with("UPCALL_OP_")).collect();

    let mut names: Vec<&str> = functions.iter().map(|name| name.as_str()).collect();
    let own = format!("upcall_{}", family.name);
    names.retain(|name| *name != own);
    names.insert(0, &own);
    let title = family.title[..1].to_lowercase() + &family.title[1..];
    let title = if family.name.starts_with("op_") { format!("operations: {title}") } else { title };
    let _ = writeln!(page, ".SH NAME\n{} \\- {title}", names.join(", "));

    page += ".SH SYNOPSIS\n.nf\n\\fB#include <upcall.h>\\fR\n.PP\n";
    for name in &functions {
        let code = &items[*name].code;
        if let Some(line) = code.strip_prefix("#define ") {
            let call = line.split_inclusive(')').next().expect("a macro");
            let _ = writeln!(page, "\\fB{};\\fR", italic_names(call));
        } else {
            page += &prototype(code);
        }
    }
    page += ".fi\n.SH DESCRIPTION\n";
    if family.name.starts_with("op_") {
        page += "What holds for all operations, and what follows upon \\fBupcall_submit\\fP(3), is in \\fBupcall\\fP(7).\n\
                 The kind of \\fBupcall_op_x\\fP() is \\fBUPCALL_OP_X\\fP.\n";
    } else {
        page += "What holds for all of the library is in \\fBupcall\\fP(7).\n";
    }
    for name in &functions {
        let _ = writeln!(page, ".SS {name}()");
        write_paragraphs(&mut page, &items[*name].comment, "", ".PP\n");
    }
    if !others.is_empty() {
        page += ".SH TYPES AND CONSTANTS\n";
        for name in others {
            let item = &items[name];
            let value = item.code.rsplit(' ').next().filter(|value| value.parse::<i64>().is_ok());
            let value = value.map_or(String::new(), |value| format!(" ({})", text(value)));
            let _ = writeln!(page, ".TP\n\\fB{name}\\fR{value}");
            write_paragraphs(&mut page, &item.comment, "", ".IP\n");
            if item.code.starts_with("typedef struct") && item.code.contains('{') {
                page += ".RS\n";
                write_struct(&mut page, item);
                page += ".RE\n";
            }
        }
    }
    let others: Vec<String> = all
        .iter()
        .filter(|other| other.name != family.name)
        .map(|other| format!(".BR upcall_{} (3)", other.name))
        .collect();
    let _ = writeln!(page, ".SH SEE ALSO\n.BR upcall (7),\n{}", others.join(",\n"));
    page
}

/// The manual pages: their names below `docs/man`, and their text.
pub fn pages(header: &str, table: &str) -> Vec<(String, String)> {
    let items = items(header);
    let families = families(table);
    let placed: Vec<&String> = families.iter().flat_map(|family| &family.symbols).collect();
    for name in items.keys() {
        let count = placed.iter().filter(|symbol| **symbol == name).count();
        assert!(count == 1, "{name} is in {count} families: docs/manual/families.txt has to name it once");
    }
    let version = env!("CARGO_PKG_VERSION");
    families
        .iter()
        .map(|family| (format!("upcall_{}.3", family.name), page(family, &families, &items, version)))
        .collect()
}
