//! Names of attributes: OpenTelemetry's conventions for generative AI where they have one, `pointsman.*` where not.

/// `chat` or `embeddings`.
pub const OPERATION: &str = "gen_ai.operation.name";
/// Who provides the model.
pub const PROVIDER: &str = "gen_ai.provider.name";
/// The model as it was asked for.
pub const REQUEST_MODEL: &str = "gen_ai.request.model";
/// The model as the answer names it.
pub const RESPONSE_MODEL: &str = "gen_ai.response.model";
/// Tokens of the prompt.
pub const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
/// Tokens of the answer.
pub const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
/// Seconds from the span's beginning to the first token of a stream.
pub const FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
/// In which way it failed.
pub const ERROR_TYPE: &str = "error.type";
/// The host that is called.
pub const SERVER_ADDRESS: &str = "server.address";
/// And its port.
pub const SERVER_PORT: &str = "server.port";
/// Of HTTP calls that come in.
pub const HTTP_METHOD: &str = "http.request.method";
/// The path, as the API names it.
pub const HTTP_ROUTE: &str = "http.route";
/// Of calls that come in over RPC: which kind.
pub const RPC_SYSTEM: &str = "rpc.system";
/// The service's full name.
pub const RPC_SERVICE: &str = "rpc.service";
/// The method's own.
pub const RPC_METHOD: &str = "rpc.method";
/// What was answered. 499: the client left.
pub const HTTP_STATUS: &str = "http.response.status_code";
/// The id in `x-request-id`, in the logs and for `explain`.
pub const REQUEST_ID: &str = "pointsman.request_id";
/// The name of a replica.
pub const REPLICA: &str = "pointsman.replica";
/// Counts a request's attempts, from 1.
pub const ATTEMPT: &str = "pointsman.attempt";
/// Attempts after the first.
pub const RETRIES: &str = "pointsman.retries";
/// How it ended, in the logs' words.
pub const OUTCOME: &str = "pointsman.outcome";
/// How many tokens the client had already when an attempt went on with its answer.
pub const RESUMED_AT: &str = "pointsman.resumed_at";

/// An event: the first token is here.
pub const FIRST_TOKEN_EVENT: &str = "pointsman.first_token";
/// An event: a broken stream goes on from here.
pub const SEAM_EVENT: &str = "pointsman.resumed";
