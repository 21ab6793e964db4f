//! nginx in front of the gateways that `cargo xtask dev` runs, with the configuration that people deploy.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::install::Program;
use crate::kept::{Kept, at, listens, wait_ready};

/// The program.
pub const PROGRAM: &str = "nginx";

/// The configuration, from the repository's root.
const CONFIG: &str = "deploy/nginx.conf";

/// It has nothing to read but its configuration.
const READY_MAX: Duration = Duration::from_secs(15);

/// Starts it before the gateways on these ports.
pub fn start(
    program: &Program,
    kept: &Kept,
    root: &Path,
    gateways: [u16; 2],
) -> Result<(), String> {
    let source = root.join(CONFIG);
    let text = fs::read_to_string(&source).map_err(|why| at(&source, why))?;
    let config = configured(&text, kept.port, gateways).map_err(|why| at(&source, why))?;
    let path = path(kept);
    fs::write(&path, config).map_err(|why| at(&path, why))?;
    let mut command = program.command(&kept.place);
    command.arg("-p").arg(&kept.place).arg("-c").arg(&path).args(["-g", "daemon off;"]);
    let log = kept.place.join("log");
    let mut child = kept.spawn(&mut command, &log)?;
    wait_ready(kept.name, &mut child, &log, READY_MAX, || listens(kept.port))
}

/// Where its configuration is. Its processes are known by that.
pub fn path(kept: &Kept) -> PathBuf {
    kept.place.join("nginx.conf")
}

/// The configuration with our addresses in the place of the containers'. Each must be there once, or the file is not the one
/// this was written for.
fn configured(text: &str, port: u16, gateways: [u16; 2]) -> Result<String, String> {
    let mut text = text.to_owned();
    let [one, two] = gateways;
    for (theirs, ours) in [
        ("listen 8080;", format!("listen 127.0.0.1:{port};")),
        ("server gateway-1:8080 ", format!("server 127.0.0.1:{one} ")),
        ("server gateway-2:8080 ", format!("server 127.0.0.1:{two} ")),
    ] {
        if text.matches(theirs).count() != 1 {
            return Err(format!("does not have `{theirs}` once"));
        }
        text = text.replace(theirs, &ours);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deployed_configuration_takes_our_addresses() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let text = fs::read_to_string(root.join(CONFIG)).expect("the file is there");
        let ours = configured(&text, 1, [2, 3]).expect("each address is there once");
        for address in ["listen 127.0.0.1:1;", "server 127.0.0.1:2 ", "server 127.0.0.1:3 "] {
            assert!(ours.contains(address), "{address}");
        }
        assert!(configured(&ours, 1, [2, 3]).is_err_and(|why| why.contains("listen 8080")));
    }
}
