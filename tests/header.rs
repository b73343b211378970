//! `include/upcall.h` equals what cbindgen makes of the sources. `UPCALL_BLESS=1 cargo test --test header` rewrites it, and
//! the list of exported symbols and the manual pages with it.

#[path = "manual/man.rs"]
mod man;

use std::{collections::BTreeSet, env, fs, path::Path};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn generated() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).expect("cbindgen.toml");
    let mut bytes = Vec::new();
    cbindgen::Builder::new()
        .with_crate(root())
        .with_config(config)
        .with_parse_deps(false)
        .generate()
        .expect("cbindgen reads the sources")
        .write(&mut bytes);
    String::from_utf8(bytes).expect("a header is text")
}

fn compare(path: &str, wanted: &str) {
    let path = root().join(path);
    if env::var_os("UPCALL_BLESS").is_some() {
        fs::write(&path, wanted).expect("the file can be written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{} is out of date: run UPCALL_BLESS=1 cargo test --test header", path.display());
}

#[test]
fn the_checked_in_header_equals_the_generated_one() {
    compare("include/upcall.h", &generated());
}

/// Nothing of the engine's own slips into the header: every name it defines is Upcall's.
#[test]
fn every_name_in_the_header_is_the_librarys() {
    for line in generated().lines() {
        let name = match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["#define", name, ..] => name,
            ["typedef", "struct", name, ..] => name,
            ["typedef", _, name] => name,
            _ => continue,
        };
        assert!(name.to_lowercase().starts_with("upcall"), "{line}");
    }
}

/// The public functions, from the header: what the shared library must export, no more and no less.
#[test]
fn the_symbol_list_equals_the_headers_functions() {
    let header = generated();
    let names: BTreeSet<&str> = header
        .lines()
        .filter(|line| !line.starts_with([' ', '*', '/', '#', '}']) && !line.starts_with("typedef"))
        .filter_map(|line| line.split_once('(').map(|(before, _)| before))
        .filter_map(|before| before.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("upcall_"))
        .collect();
    assert!(names.contains("upcall_submit") && names.contains("upcall_op_read"));
    let list: String = names.iter().flat_map(|name| [*name, "\n"]).collect();
    compare("tests/symbols.txt", &list);
}

#[test]
fn the_manual_pages_equal_the_headers_text() {
    let families = fs::read_to_string(root().join("docs/manual/families.txt")).expect("families.txt");
    for (name, text) in man::pages(&generated(), &families) {
        compare(&format!("docs/man/{name}"), &text);
    }
}
