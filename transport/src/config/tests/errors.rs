//! What a user reads, word for word.

use super::*;

/// Each document without its `version`, and what is said about it. Lines count from the `version` above.
const TOLD: &[(&str, &str)] = &[
    (
        "routing: {max_retrys: 3}",
        "p.yaml:2:11: routing.max_retrys: unknown key; did you mean max_retries?",
    ),
    ("colour: red", "p.yaml:2:1: colour: unknown key"),
    (
        "upstreams: [{url: 'grpc://h', tls: {ca: a.pem}}, {url: 'quic://h', tls: {pin: '5f', cert: a}}]",
        "p.yaml:2:31: upstreams[0].tls: only quic://, grpcs://, chats:// and auths:// have this; other endpoints \
         with TLS are believed where a public authority vouches for them\n\
         p.yaml:2:79: upstreams[1].tls.pin: a fingerprint is sha256: and 64 hexadecimal digits, as the \
         worker prints it when it starts\n\
         p.yaml:2:85: upstreams[1].tls.cert: goes with `key`, which is missing",
    ),
    (
        "log:\n  level: info\n  level: debug",
        "p.yaml:4:3: log.level: given twice; the first is at line 3. Remove one of them",
    ),
    (
        "discovery: {consul: {addr: 'http://c:8500', ca: a.pem}}",
        "p.yaml:2:45: discovery.consul.ca: is of use where `addr` is https:// alone: write that, or remove this",
    ),
    (
        "discovery: {consul: {addr: 'https://c:8501', key: k.pem}}",
        "p.yaml:2:46: discovery.consul.key: goes with `cert`, which is missing",
    ),
    ("4: x", "p.yaml:2:1: a key is a text; write it in quotes"),
    (
        "log: {<<: {level: info}}",
        "p.yaml:2:7: log: merge keys (<<) are not supported; write the keys out",
    ),
    (
        "server: {http: {timeout: 30}}",
        "p.yaml:2:26: server.http.timeout: expected a duration like 30s, 100ms or 1h30m, found 30",
    ),
    (
        "server: {http: {body_bytes_max: lots}}",
        "p.yaml:2:33: server.http.body_bytes_max: expected a size like 10MiB, found \"lots\"",
    ),
    (
        "server: {http: {addr: [1]}}",
        "p.yaml:2:23: server.http.addr: expected an address like 127.0.0.1:8080 or :8080, found a list",
    ),
    (
        "routing: {max_retries: many}",
        "p.yaml:2:24: routing.max_retries: expected a whole number like 3, found \"many\"",
    ),
    (
        "routing: fast",
        "p.yaml:2:10: routing: expected a mapping of keys to values, found a single value",
    ),
    (
        "monitoring: {prometheus: {enabled: yes}}",
        "p.yaml:2:36: monitoring.prometheus.enabled: expected true or false, found \"yes\"",
    ),
    (
        "models: {m: {price: {input: cheap}}}",
        "p.yaml:2:10: models.m: nobody serves it; give it an endpoint, or list it under a provider\n\
         p.yaml:2:29: models.m.price.input: expected an amount of US dollars like 0.15, found \"cheap\"",
    ),
    (
        "routing: {load_balancer: round_robbin}",
        "p.yaml:2:26: routing.load_balancer: \"round_robbin\" is not one of auto, round_robin, \
         weighted_round_robin, least_load, p2c, sticky; did you mean round_robin?",
    ),
    ("journal: {fsync: 2h}", "p.yaml:2:18: journal.fsync: an interval is from 1ms to 1m"),
    (
        "models: {m: {endpoints: [{url: 'http://h', weight: 0}]}}",
        "p.yaml:2:52: models.m.endpoints[0].weight: 0 is out of range; from 1 to 10000",
    ),
    (
        "models: {m: {endpoints: [{weight: 1}]}}",
        "p.yaml:2:10: models.m: nobody serves it; give it an endpoint, or list it under a provider\n\
         p.yaml:2:26: models.m.endpoints[0].url: missing; give a URL like http://127.0.0.1:8000/v1 or grpc://127.0.0.1:50055",
    ),
    (
        "upstreams: [{url: 'ftp://h'}, {url: 'http://u:p@h'}, {url: 'http://h?k=v'}, {url: 'http://h:x'}]",
        "p.yaml:2:19: upstreams[0].url: a URL begins with http://, https://, grpc://, grpcs:// or quic://\n\
         p.yaml:2:37: upstreams[1].url: a URL holds no user or password here; use api_key\n\
         p.yaml:2:60: upstreams[2].url: a base URL has no query and no fragment\n\
         p.yaml:2:83: upstreams[3].url: the URL's host or port is not valid",
    ),
    (
        "models: {\"a.b\": {endpoints: [{url: 'http://h'}, {url: 'http://h'}]}}",
        "p.yaml:2:49: models[\"a.b\"].endpoints[1].name: this model has another endpoint named \"h\"; \
         give each a name",
    ),
    (
        "log: {level: \"${LEVEL}\"}",
        "p.yaml:2:14: log.level: the environment variable LEVEL is not set; set it, or write \
         ${LEVEL:-a default}",
    ),
    (
        "log: {level: \"${LEVEL\"}",
        "p.yaml:2:14: log.level: a variable is written ${NAME} or ${NAME:-default}; \
         a literal ${ is written $${",
    ),
    (
        "providers: {openai: {api_key: 'file:/nowhere/at/all'}}",
        "p.yaml:2:31: providers.openai.api_key: the secret's file /nowhere/at/all cannot be read: \
         No such file or directory (os error 2)",
    ),
    (
        "providers: {openai: {api_key: 0123}}",
        "p.yaml:2:31: providers.openai.api_key: a text is expected here; write it in quotes",
    ),
    (
        "providers: {acme: {}}",
        "p.yaml:2:19: providers.acme.base_url: missing; give a URL like https://api.example.com/v1",
    ),
    (
        "routing: {timeout: 30s, timeouts: {request: 1m}}",
        "p.yaml:2:36: routing.timeouts.request: contradicts routing.timeout; keep one of them",
    ),
    (
        "server: {admin: {addr: ':9091'}}\nmonitoring: {prometheus: {addr: ':9092'}}",
        "p.yaml:3:27: monitoring.prometheus.addr: contradicts server.admin.addr; keep one of them",
    ),
    (
        "server: {admin: {addr: '127.0.0.1:8080'}}",
        "p.yaml:2:18: server.admin.addr: the same address as server.http.addr; give each its own",
    ),
    (
        "routing: {default_provider: opnai}\nproviders: {openai: {}}",
        "p.yaml:2:11: routing.default_provider: no provider named \"opnai\"; did you mean openai?",
    ),
    (
        "models: {m: {endpoints: [{url: 'grpc://w:1', continues: r1}]}}",
        "p.yaml:2:46: models.m.endpoints[0].continues: a worker says itself whose answers it continues: give \
         --backend-continues to the worker",
    ),
    (
        "rules: [{model_name: m, provider_id: nobody}]",
        "p.yaml:2:25: rules[0].provider_id: no provider named \"nobody\"",
    ),
    (
        "tenants: {acme: {}}\nkeys: [{hash: 'sha256:0', tenant: acne}]",
        "p.yaml:3:15: keys[0].hash: expected a key's hash like sha256:... as `pointsman key new` \
         prints it, or file:/path, found a text that is not shown\n\
         p.yaml:3:27: keys[0].tenant: no tenant named \"acne\"; did you mean acme?",
    ),
    (
        "keys: [{hash: pm-abc}]",
        "p.yaml:2:15: keys[0].hash: this is a key, not its hash: anybody who reads the file could use it",
    ),
    (
        "tenants: {a/b: {}}",
        "p.yaml:2:16: tenants[\"a/b\"]: a tenant's name has no slash: it separates tenant and user",
    ),
    (
        "tenants: {acme: {users: {key/a: {}}}}",
        "p.yaml:2:33: tenants.acme.users[\"key/a\"]: a user's name does not begin with \"key/\": that is what keys' own \
         sessions are called",
    ),
    (
        "data: {redis: {addr: 'redis://r:6379', cluster: true, db: 1}, database: {driver: postgres}}",
        "p.yaml:2:22: data.redis.addr: each address is host:port, without a scheme or a password\n\
         p.yaml:2:55: data.redis.db: a cluster has database 0 alone: remove this key\n\
         p.yaml:2:73: data.database: not supported yet: this build has no database: its data is in \
         data.dir; remove this section",
    ),
    (
        "routing: {breaker: {ejection_max: 1s}}",
        "p.yaml:2:21: routing.breaker.ejection_max: must not be less than routing.breaker.ejection_base",
    ),
    ("a: *nope", "p.yaml:2:4: not valid YAML: alias references unknown anchor"),
    (
        "---\nversion: 1",
        "p.yaml:2:1: not valid YAML: a configuration is one document; remove the ---",
    ),
    (
        "log: {level: !warn x}",
        "p.yaml:2:20: not valid YAML: tags are not supported; write a value that begins with ! in quotes",
    ),
];

#[test]
fn every_mistake_is_told_with_its_place_and_what_to_do() {
    let wrong: Vec<String> = TOLD
        .iter()
        .filter(|(text, told)| errors(text) != *told)
        .map(|(text, told)| format!("{text}\n  told     {}\n  expected {told}", errors(text)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
    let told = errors("log: {level: loud}\nserver: {http: {adr: 1, drain_grace: 99h}}\nextra: 1");
    let expected = "p.yaml:2:14: log.level: \"loud\" is not one of trace, debug, info, warn, warning, error\n\
        p.yaml:3:17: server.http.adr: unknown key; did you mean addr?\n\
        p.yaml:3:38: server.http.drain_grace: \"99h\" is out of range; from 0s to 1h\n\
        p.yaml:4:1: extra: unknown key";
    assert_eq!(told, expected);
}

#[test]
fn a_file_says_its_version_and_another_one_is_refused() {
    let told = |text| parsed(text, &[]).unwrap_err().to_string();
    assert_eq!(told(""), "p.yaml:1:1: version: missing; give a whole number like 3");
    assert_eq!(told("[1]"), "p.yaml:1:1: expected a mapping of keys to values, found a list");
    assert_eq!(
        told("version: 2"),
        "p.yaml:1:1: version: this build reads version 1 of the configuration"
    );
}

#[test]
fn a_file_that_is_not_there_or_not_text_is_told() {
    let none = load(Some(Path::new("/nowhere/p.yaml")), &Flags::default(), &Env::default());
    let told = "/nowhere/p.yaml: cannot be read: No such file or directory (os error 2)";
    assert_eq!(none.unwrap_err().to_string(), told);
    let bytes = parse("p.yaml", b"a: \xff", &Flags::default(), &Env::default());
    assert_eq!(bytes.unwrap_err().to_string(), "p.yaml: not valid YAML: not UTF-8 from byte 3 on");
}

#[test]
fn what_the_environment_or_a_flag_says_wrong_is_told_by_its_name() {
    let flags = Flags {
        listen: Some("here".into()),
        upstreams: vec!["nowhere".into()],
        ..Flags::default()
    };
    let env = [("LOG_LEVEL", "loud")].into_iter().collect();
    let told = load(None, &flags, &env).unwrap_err().to_string();
    let expected = "--listen (command line): server.http.addr: expected an address like \
        127.0.0.1:8080 or :8080, found \"here\"\n\
        --upstream (command line): upstreams: a URL begins with http://, https://, grpc://, grpcs:// or quic://\n\
        LOG_LEVEL (environment): log.level: \"loud\" is not one of trace, debug, info, warn, warning, error";
    assert_eq!(told, expected);
}

#[test]
fn a_file_of_rubbish_is_told_up_to_a_hundred_lines() {
    let text: String = (0..250).map(|line| format!("key{line}: x\n")).collect();
    let told = errors(&text);
    assert_eq!(told.lines().count(), Errors::PROBLEMS_MAX + 1);
    assert!(told.ends_with("\nand 150 more"), "{told}");
}

#[test]
fn a_secret_is_shown_nowhere_whatever_is_wrong_around_it() {
    let secret = "hunter2-and-more";
    let hash = format!("sha256:{}", "0".repeat(64));
    for text in [
        "providers: {openai: SECRET}".to_owned(),
        "providers: {openai: {api_key: SECRET, extra: 1}}".into(),
        "providers: {openai: {api_key: [SECRET]}}".into(),
        "providers: {openai: {api_key: {SECRET: SECRET}}}".into(),
        "providers: {openai: {api_key: !SECRET}}".into(),
        "providers: {openai: {api_key: \"SECRET\\n\"}}".into(),
        "providers: {openai: {api_key: \"${PASSWORD}\", timeout: x}}".into(),
        "providers: {openai: {api_key: \"${NONE:-SECRET}\", timeout: x}}".into(),
        "providers: {openai: {base_url: \"http://u:SECRET@h\"}}".into(),
        "providers: {openai: {base_url: \"http://h/${PASSWORD}?x\"}}".into(),
        "log: {level: \"${PASSWORD}\"}".into(),
        "server: {http: {timeout: \"${PASSWORD}\"}}".into(),
        "data: {redis: {password: SECRET}}".into(),
        "data: {database: {source: SECRET}}".into(),
        "keys: [{hash: pm-SECRET}]".into(),
        "keys: [{hash: SECRET}]".into(),
        "keys: [SECRET]".into(),
        "models: {m: {endpoints: [{url: 'http://h', api_key: SECRET}]}}".into(),
        format!("keys: [{{hash: '{hash}'}}]\nproviders: {{openai: {{api_key: SECRET}}}}"),
    ] {
        let text = format!("version: 1\n{}", text.replace("SECRET", secret));
        let result = parsed(&text, &[("PASSWORD", secret)]);
        let shown = match &result {
            Ok(loaded) => format!("{} {:?} {:?}", loaded.effective, loaded.warnings, loaded.config),
            Err(errors) => format!("{errors} {errors:?}"),
        };
        assert!(!shown.contains("hunter2"), "{text}\n{shown}");
    }
}

#[test]
fn what_a_server_runs_is_named_in_some_words() {
    let told = errors(&format!(
        "models: {{m: {{endpoints: [{{url: 'http://w:1', continues: {}}}]}}}}",
        "x".repeat(257)
    ));
    assert!(told.contains("continues: name what the server runs in 256 bytes at most"), "{told}");
}
