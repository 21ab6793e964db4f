//! `pointsman demo-replica`.

use std::process::ExitCode;

use tokio::net::TcpListener;

use crate::demo::{self, DemoReplicaArgs};
use crate::out::say;

pub fn run(args: DemoReplicaArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        let listener = match TcpListener::bind(args.listen).await {
            Ok(listener) => listener,
            Err(error) => {
                eprintln!("cannot listen on {}: {error}", args.listen);
                return ExitCode::FAILURE;
            }
        };
        if let Ok(addr) = listener.local_addr() {
            say!("demo replica at http://{addr}/v1");
        }
        let interrupted = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
        match demo::serve(listener, args.options(), interrupted).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("the replica broke: {error}");
                ExitCode::FAILURE
            }
        }
    })
}
