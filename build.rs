//! Gives the shared library its SONAME: `libupcall.so.0.MINOR` until 1.0, `libupcall.so.MAJOR` after.
//! CMake and the package metadata use the same rule. Once loaded it stays loaded.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let part = |name: &str| env::var(name).unwrap_or_default();
    let (major, minor) = (part("CARGO_PKG_VERSION_MAJOR"), part("CARGO_PKG_VERSION_MINOR"));
    let abi = if major == "0" { format!("0.{minor}") } else { major };
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libupcall.so.{abi}");
    // A lookup that was given up may still run in it after dlclose(3), and the interrupt signal keeps its handler.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
