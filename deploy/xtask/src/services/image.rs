//! Servers out of images, where neither the machine nor its packages have them. As close to a process as containers come: the
//! host's network and process ids, our own user, one directory. So ports, process ids and what is stopped by them mean the
//! same as without an engine. For Linux: elsewhere the engine's host is another machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::install::{INSTALL_MAX, find};
use crate::process::{output, run_within};

/// The engine's client.
const ENGINE: &str = "docker";

/// An engine that is there answers within milliseconds.
const ENGINE_MAX: Duration = Duration::from_secs(20);

/// The images of `deploy/compose.yaml`.
pub const REDIS: &str = "redis:7.2.6-alpine";
/// See [`REDIS`].
pub const NGINX: &str = "nginx:1.27.3-alpine";
/// See [`REDIS`].
pub const CONSUL: &str = "hashicorp/consul:1.20.1";

/// A program in an image that the engine has.
#[derive(Clone, Debug)]
pub struct Image {
    engine: PathBuf,
    image: &'static str,
    program: &'static str,
    /// `uid:gid`, ours.
    user: String,
}

impl Image {
    /// Asks the engine for the image, which it fetches where it does not have it.
    pub fn ensure(program: &'static str, image: &'static str) -> Result<Self, String> {
        let engine = find(ENGINE).ok_or_else(|| format!("there is no `{ENGINE}` here"))?;
        let quiet = |args: &[&str]| {
            let mut command = Command::new(&engine);
            command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        run_within(&mut quiet(&["version"]), ENGINE_MAX)?;
        if run_within(&mut quiet(&["image", "inspect", image]), ENGINE_MAX).is_err() {
            run_within(Command::new(&engine).args(["pull", image]), INSTALL_MAX)?;
        }
        let id = |what| output(Command::new("id").arg(what)).map(|id| id.trim().to_owned());
        let user = format!("{}:{}", id("-u")?, id("-g")?);
        Ok(Self { engine, image, program, user })
    }

    /// Runs it in the foreground; what follows are its own arguments.
    pub fn command(&self, place: &Path) -> Command {
        let mut command = Command::new(&self.engine);
        command.args(["run", "--rm", "--network", "host", "--pid", "host", "--user", &self.user]);
        // What nginx wants to write beside its own directory.
        command.args(["--tmpfs", "/var/cache/nginx", "--tmpfs", "/run"]);
        command.arg("--volume").arg(format!("{0}:{0}", place.display()));
        command.args(["--workdir".as_ref(), place.as_os_str()]);
        command.args(["--entrypoint", self.program, self.image]);
        command
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Obeys `run` as an engine would, with the programs of this machine: everything up to the image is the engine's.
    const STAND_IN: &str = r#"#!/bin/sh
[ "$1" = run ] || exit 2
shift
while [ "$1" != a-server:1 ]; do
  case $1 in
    --rm) shift ;;
    --workdir) cd "$2" || exit 3; shift 2 ;;
    --entrypoint) program=$2; shift 2 ;;
    --network | --pid | --user | --tmpfs | --volume) shift 2 ;;
    *) echo "$1 is not known" >&2; exit 4 ;;
  esac
done
shift
exec "$program" "$@"
"#;

    #[test]
    fn a_server_in_an_image_gets_its_own_arguments_and_its_directory() {
        let place = std::env::temp_dir().join(format!("pointsman-image-{}", std::process::id()));
        fs::create_dir_all(&place).expect("a directory is made");
        let engine = place.join("engine");
        fs::write(&engine, STAND_IN).expect("a file is written");
        let runs = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&engine, runs).expect("it is our file");
        let user = "1000:1000".to_owned();
        let image = Image { engine, image: "a-server:1", program: "sh", user };
        let mut command = image.command(&place);
        let printed = output(command.args(["-c", "pwd; echo \"$1\"", "sh", "two words"]));
        let here = place.canonicalize().expect("it is there");
        assert_eq!(printed, Ok(format!("{}\ntwo words\n", here.display())));
        fs::remove_dir_all(&place).expect("our own directory can be removed");
    }

    #[test]
    fn images_are_those_that_are_deployed() {
        let compose = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose.yaml");
        let compose = fs::read_to_string(compose).expect("the file is there");
        for image in [REDIS, NGINX, CONSUL] {
            assert!(compose.contains(&format!("image: {image}\n")), "{image}");
        }
    }
}
