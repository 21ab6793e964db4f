//! `pointsman key new`.

use std::process::ExitCode;

use crate::cli::KeyCommand;
use crate::out::say;

pub fn run(command: KeyCommand) -> ExitCode {
    let KeyCommand::New = command;
    match transport::keys::generate() {
        Ok((key, hash)) => {
            say!("key: {}", key.expose());
            say!("hash: {hash}");
            eprintln!(
                "The key is shown only now. Put the hash under `keys:` in the configuration."
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("the operating system gives no randomness for a key: {error}");
            ExitCode::FAILURE
        }
    }
}
