//! The simulator's gate: a fixed budget of seeds, the committed plans, the planted bugs, and the same twice.
//!
//! It is built with its own profile into its own target directory: its build holds planted bugs, and what people run must
//! never be linked from the same objects.

use std::time::Duration;

use crate::process::{Workspace, run, run_within};

/// What the gate may take, building apart: it takes about ten minutes on two cores.
const LIMIT: Duration = Duration::from_secs(25 * 60);

/// Builds the simulator with its planted bugs, and runs its gate.
pub fn gate(workspace: &Workspace) -> Result<(), String> {
    let target = workspace.target.join("sim");
    let directory = target.to_string_lossy().into_owned();
    let build = [
        "build",
        "--profile",
        "sim",
        "--package",
        "sim",
        "--bin",
        "pointsman-sim",
        "--features",
        "mutants",
        "--target-dir",
        &directory,
    ];
    run(&mut workspace.cargo(&build))?;
    let program = target.join("sim").join("pointsman-sim");
    run_within(workspace.command(program).arg("gate"), LIMIT)
}
