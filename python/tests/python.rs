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
    for package in ["weightd", "weightd_plugins"] {
        let installed = place.path().join(package);
        fs::create_dir(&installed).unwrap();
        for file in fs::read_dir(Path::new(HERE).join(package)).unwrap() {
            let file = file.unwrap();
            if file.file_type().unwrap().is_file() {
                fs::copy(file.path(), installed.join(file.file_name())).unwrap();
            }
        }
    }
    let module = env::current_exe().unwrap().with_file_name("libweightd_python.so");
    let native = place.path().join("weightd/_native.abi3.so");
    fs::copy(&module, native).unwrap_or_else(|error| panic!("{module:?}: {error}"));
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
    run_with(package().path(), interpreter, framework, module);
}

/// The same with a package that is somewhere else.
fn run_with(package: &Path, interpreter: &Path, framework: &str, module: &str) {
    let mut command = Command::new(interpreter);
    command.arg(Path::new(HERE).join("tests/run.py")).arg(module);
    command.env("PYTHONPATH", package).env("PYTHONDONTWRITEBYTECODE", "1").env("FRAMEWORK", framework);
    // JAX would look for accelerators, and say at length that there are none.
    let output = command.env("JAX_PLATFORMS", "cpu").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
}

/// What packs wheels, beside the interpreter.
fn maturin(interpreter: &Path) -> Result<PathBuf, Unready> {
    let path = interpreter.with_file_name("maturin");
    if path.exists() { Ok(path) } else { Err(Unready::NotInstalled { what: "maturin".to_owned(), path }) }
}

/// The wheel is compiled in a folder of its own, because its dependencies have fewer features than those of the workspace,
/// and without optimising: what it does is tested with the other module, here it is packed.
#[test]
fn pip_installs_the_module_with_its_types() {
    let interpreter = require!(with("numpy", python()));
    let maturin = require!(maturin(&interpreter));
    let target = env::current_exe().unwrap().ancestors().nth(3).unwrap().join("wheel");
    let place = TempDir::new().unwrap();
    let mut build = Command::new(maturin);
    build.args(["build", "--quiet", "--locked", "--profile", "dev", "--compatibility", "linux"]);
    build.args(["--config", "profile.dev.opt-level=0", "--config", r#"profile.dev.package."*".opt-level=0"#]);
    build.arg("--interpreter").arg(&interpreter).arg("--out").arg(place.path());
    build.arg("--target-dir").arg(target).current_dir(HERE);
    let output = build.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let wheels = fs::read_dir(place.path()).unwrap().map(|file| file.unwrap().path()).collect::<Vec<_>>();
    let [wheel] = wheels.as_slice() else { panic!("one wheel, not {wheels:?}") };
    let name = wheel.file_name().unwrap().to_string_lossy();
    assert!(name.contains("-cp39-abi3-"), "{name} is for more than one Python");
    let unpacked = place.path().join("unpacked");
    let unpack = Command::new(&interpreter).args(["-m", "zipfile", "-e"]).arg(wheel).arg(&unpacked).output();
    assert!(unpack.unwrap().status.success(), "{name} is an archive");
    for file in ["py.typed", "_native.pyi"] {
        assert!(unpacked.join("weightd").join(file).exists(), "{name} has {file}");
    }
    run_with(&unpacked, &interpreter, "numpy", "test_dlpack");
    run_with(&unpacked, &interpreter, "numpy", "test_entry_points");
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
fn tensors_are_borrowed_from_agents() {
    run(&require!(with("numpy", python())), "numpy", "test_handoff");
}

#[test]
fn slices_are_what_pytorch_narrows_to() {
    run(&require!(with("torch", torch_python())), "torch", "test_slices");
}

#[test]
fn only_what_is_needed_is_asked_for() {
    run(&require!(with("numpy", python())), "numpy", "test_names");
}

#[test]
fn tensors_come_through_a_ring() {
    run(&require!(with("numpy", python())), "numpy", "test_streaming");
}

#[test]
fn bytes_that_were_wrong_are_told_or_replaced() {
    run(&require!(with("numpy", python())), "numpy", "test_confirming");
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

#[test]
fn tensors_are_copied_to_a_cuda_device() {
    run(&require!(with("torch", torch_python())), "torch", "test_cuda");
}

#[test]
fn slices_and_rings_reach_a_cuda_device() {
    run(&require!(with("torch", torch_python())), "torch", "test_cuda_parts");
}

#[test]
fn what_a_cuda_device_refuses_is_told() {
    run(&require!(with("torch", torch_python())), "torch", "test_cuda_faults");
}

#[test]
fn jax_puts_tensors_on_its_devices() {
    run(&require!(with("jax", python())), "jax", "test_jax_devices");
}

#[test]
fn vllm_loads_by_the_plugin() {
    run(&require!(with("torch", torch_python())), "torch", "test_vllm");
}

#[test]
fn vllm_loads_what_an_agent_lends() {
    run(&require!(with("torch", torch_python())), "torch", "test_lent");
}

#[test]
fn sglang_loads_by_the_plugin() {
    run(&require!(with("torch", torch_python())), "torch", "test_sglang");
}
