//! Compiles the few functions through which libext2fs is called, and links that library statically.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const SOURCE: &str = "src/ext4/library.c";
const REMEDY: &str = "install it with `apt-get install libext2fs-dev`";

fn main() {
    println!("cargo:rerun-if-changed={SOURCE}");
    let mut build = cc::Build::new();
    build.file(SOURCE).warnings(true).extra_warnings(true).std("c11").define("_GNU_SOURCE", None);
    let compiler = build.get_compiler();
    if !has_header(compiler.to_command()) {
        fail(&format!("the header ext2fs/ext2fs.h of libext2fs is not there: {REMEDY}"));
    }
    // Ours before the library's: a linker takes from a static library only what it already misses.
    build.compile("weightd_ext4");
    for library in ["ext2fs", "com_err"] {
        let Some(folder) = folder_of(compiler.to_command(), library) else {
            fail(&format!("the static library lib{library}.a is not there: {REMEDY}"));
        };
        println!("cargo:rustc-link-search=native={}", folder.display());
        println!("cargo:rustc-link-lib=static={library}");
    }
}

/// Whether the compiler finds the library's header, wherever its own settings say to look.
fn has_header(mut compiler: Command) -> bool {
    compiler.args(["-E", "-include", "ext2fs/ext2fs.h", "-x", "c", "/dev/null", "-o", "/dev/null"]);
    compiler.stdout(Stdio::null()).stderr(Stdio::null());
    compiler.status().is_ok_and(|status| status.success())
}

/// The folder in which the compiler finds a static library, which rustc would not look for where the compiler does.
fn folder_of(mut compiler: Command, library: &str) -> Option<PathBuf> {
    let output = compiler.arg(format!("-print-file-name=lib{library}.a")).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    // A library that is not found comes back as its bare name.
    Path::new(path.trim()).parent().filter(|folder| folder.is_absolute()).map(Path::to_path_buf)
}

fn fail(why: &str) -> ! {
    println!("cargo:warning={why}");
    panic!("{why}");
}
