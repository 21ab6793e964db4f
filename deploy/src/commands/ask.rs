//! Questions to a gateway: to the running one through its admin socket, or to its stopped directory.

use std::path::PathBuf;
use std::process::ExitCode;

use transport::admin::{Question, answer_from_directory, ask, socket_path};

use crate::cli::{DrainArgs, ExplainArgs, JournalCommand, QuotaCommand, StatusArgs, Which};
use crate::out::say;

pub fn status(args: &StatusArgs) -> ExitCode {
    put(&args.which, &Question::Status { json: args.json })
}

pub fn drain(args: &DrainArgs, on: bool) -> ExitCode {
    put(&args.which, &Question::Drain { endpoint: args.endpoint.clone(), on })
}

pub fn explain(args: &ExplainArgs) -> ExitCode {
    put(&args.which, &Question::Explain { request: args.request.clone() })
}

pub fn journal(command: &JournalCommand) -> ExitCode {
    let JournalCommand::Verify { dir } = command;
    let data = dir.clone().unwrap_or_else(|| PathBuf::from("./pointsman-data"));
    put(&Which { data, socket: None }, &Question::Verify)
}

pub fn quota(command: &QuotaCommand) -> ExitCode {
    match command {
        QuotaCommand::Show(args) => put(&args.which, &Question::Quota { json: args.json }),
        QuotaCommand::Audit { which } => put(which, &Question::Audit),
    }
}

fn put(which: &Which, question: &Question) -> ExitCode {
    let socket = which.socket.clone().unwrap_or_else(|| socket_path(&which.data));
    let said = match ask(&socket, question) {
        Ok(Some(said)) => said,
        Ok(None) if !which.data.is_dir() => {
            let data = which.data.display();
            eprintln!("there is no data directory {data}: say where it is with --data DIR");
            return ExitCode::FAILURE;
        }
        Ok(None) => answer_from_directory(&which.data, question),
        Err(error) => {
            eprintln!("the gateway at {} does not answer: {error}", socket.display());
            return ExitCode::FAILURE;
        }
    };
    if said.ok {
        say!("{}", said.text.trim_end());
        ExitCode::SUCCESS
    } else {
        eprintln!("{}", said.text.trim_end());
        ExitCode::FAILURE
    }
}
