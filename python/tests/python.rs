//! Runs the tests that are written in Python, with the module that cargo built beside this program.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use weightd_harness::{Unready, python, require, torch_python};

/// The folder of this crate.
const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// The package as it would be installed: its Python, and the module under the name that Python looks for.
fn package() -> TempDir {
    let place = TempDir::new().unwrap();
    let package = place.path().join("weightd");
    fs::create_dir(&package).unwrap();
    for file in fs::read_dir(Path::new(HERE).join("weightd")).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() {
            fs::copy(file.path(), package.join(file.file_name())).unwrap();
        }
    }
    let module = env::current_exe().unwrap().with_file_name("libweightd_python.so");
    fs::copy(&module, package.join("_native.abi3.so")).unwrap_or_else(|error| panic!("{module:?}: {error}"));
    place
}

/// An interpreter that has the framework.
fn with(framework: &str, interpreter: Result<PathBuf, Unready>) -> Result<PathBuf, Unready> {
    let interpreter = interpreter?;
    let import = Command::new(&interpreter).args(["-c", &format!("import {framework}")]).output();
    if import.is_ok_and(|output| output.status.success()) {
        return Ok(interpreter);
    }
    Err(Unready::NotInstalled { what: format!("{framework} for Python"), path: interpreter })
}

/// Runs a module of tests with everything that it may use of a framework.
fn run(interpreter: &Path, framework: &str, module: &str) {
    let package = package();
    let mut command = Command::new(interpreter);
    command.arg(Path::new(HERE).join("tests/run.py")).arg(module);
    command.env("PYTHONPATH", package.path()).env("PYTHONDONTWRITEBYTECODE", "1").env("FRAMEWORK", framework);
    // JAX would look for accelerators, and say at length that there are none.
    let output = command.env("JAX_PLATFORMS", "cpu").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
}

#[test]
fn what_is_opened_and_what_is_refused() {
    run(&require!(with("numpy", python())), "numpy", "test_opening");
}

#[test]
fn whose_memory_it_is() {
    run(&require!(with("numpy", python())), "numpy", "test_memory");
}

#[test]
fn capsules_are_as_dlpack_says() {
    run(&require!(with("numpy", python())), "numpy", "test_dlpack");
}

#[test]
fn numpy_takes_every_type_without_a_copy() {
    run(&require!(with("numpy", python())), "numpy", "test_frameworks");
}

#[test]
fn jax_takes_every_type_without_a_copy() {
    run(&require!(with("jax", python())), "jax", "test_frameworks");
}

#[test]
fn pytorch_takes_every_type_without_a_copy() {
    run(&require!(with("torch", torch_python())), "torch", "test_frameworks");
}

#[test]
fn safe_open_is_that_of_safetensors_for_numpy() {
    run(&require!(with("numpy", python())), "numpy", "test_safe_open");
}

#[test]
fn safe_open_is_that_of_safetensors_for_jax() {
    run(&require!(with("jax", python())), "jax", "test_safe_open");
}

#[test]
fn safe_open_is_that_of_safetensors_for_pytorch() {
    run(&require!(with("torch", torch_python())), "torch", "test_safe_open");
}
