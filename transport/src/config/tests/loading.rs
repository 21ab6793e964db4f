//! What good files come to.

use std::time::Duration;

use control::units::{MicroUsd, Price, Tokens};

use super::*;

#[test]
fn the_file_of_document_002_is_taken_as_it_is_without_its_stores() {
    let text = r#"
server:
  http: { addr: "0.0.0.0:8000", timeout: 30s }
  grpc: { addr: "0.0.0.0:9000", timeout: 30s }
routing: { default_provider: "openai", max_retries: 3, timeout: 30s, load_balancer: "weighted_round_robin" }
session: { max_tokens: 4000, ttl: 3600s, compression_threshold: 3000, summary_model: "gpt-3.5-turbo" }
providers:
  openai: { api_key: "${OPENAI_API_KEY}", base_url: "https://api.openai.com/v1", timeout: 30s, max_rps: 100 }
  aliyun: { api_key: "${ALIYUN_API_KEY}", base_url: "https://dashscope.aliyuncs.com/api/v1", timeout: 30s, max_rps: 200 }
monitoring:
  prometheus: { enabled: true, addr: ":9090" }
  jaeger: { endpoint: "http://localhost:14268/api/traces" }
"#;
    let vars = [("OPENAI_API_KEY", "k1"), ("ALIYUN_API_KEY", "k2")];
    let loaded = parsed(&format!("version: 1\n{text}"), &vars).unwrap();
    let config = loaded.config;
    assert_eq!(config.server.http.addr.to_string(), "0.0.0.0:8000");
    assert_eq!(config.server.admin.addr.to_string(), "0.0.0.0:9090");
    assert_eq!(config.routing.load_balancer, LoadBalancer::RoundRobin);
    assert_eq!(config.routing.timeouts.request, Duration::from_secs(30));
    assert_eq!(config.session.max_tokens, Tokens(4_000));
    assert_eq!(config.providers["openai"].max_rps, Some(100));
    let secret = config.providers["openai"].api_key.as_ref().unwrap();
    assert_eq!(secret.expose(), "k1");
    let warned: Vec<&str> = loaded.warnings.iter().map(|warning| warning.path.as_str()).collect();
    let expected = [
        "server.grpc.timeout",
        "routing.default_provider",
        "session.compression_threshold",
        "session.summary_model",
        "providers.aliyun.base_url",
        "monitoring.jaeger.endpoint",
    ];
    assert_eq!(warned, expected);
}

#[test]
fn durations_sizes_money_and_addresses_are_read_as_people_write_them() {
    let config = config(
        "server: {http: {addr: ':80', timeout: 1h30m, body_bytes_max: 64 KiB, drain_grace: 0s}}\n\
         journal: {segment_bytes: 2097152, fsync: never}\n\
         routing: {timeouts: {connect: 250ms}}\n\
         models: {m: {endpoints: [{url: 'http://[::1]:8000/'}], price: {input: 0.15, output: $2.5}}}",
    );
    assert_eq!(config.server.http.addr.to_string(), "0.0.0.0:80");
    assert_eq!(config.server.http.timeout, Duration::from_secs(5_400));
    assert_eq!(config.server.http.body_bytes_max, ByteSize(65_536));
    assert_eq!(config.server.http.drain_grace, Duration::ZERO);
    assert_eq!(config.journal.segment_bytes, ByteSize::mib(2));
    assert_eq!(config.journal.fsync, Fsync::Never);
    let model = &config.models["m"];
    assert_eq!(model.timeouts.connect, Duration::from_millis(250), "filled in from routing");
    assert_eq!(model.price, Price { input: MicroUsd(150_000), output: MicroUsd(2_500_000) });
    assert_eq!(model.endpoints[0].url.join("/models"), "http://[::1]:8000/models");
    assert_eq!(model.endpoints[0].name, "[::1]:8000");
}

#[test]
fn a_url_without_a_path_is_that_of_a_server_and_gets_v1() {
    let join = |url: &str| url.parse::<Url>().map(|url| url.join("/models"));
    assert_eq!(join("http://h:1").unwrap(), "http://h:1/v1/models");
    assert_eq!(join("http://h:1/").unwrap(), "http://h:1/models");
    assert_eq!(join("https://h/a/b/").unwrap(), "https://h/a/b/models");
    for url in ["http://", "http://:80", "http://h:0", "http://h:99999", "h:80", "http://h /x"] {
        assert!(join(url).is_err(), "{url}");
    }
}

#[test]
fn every_value_knows_who_said_it_and_the_strongest_wins() {
    let text = "version: 1\nserver:\n  http: {addr: '10.0.0.1:1', timeout: \"${T:-5s}\"}\nlog: {level: warn}\n";
    let flags = Flags { data: Some("/d".into()), ..Flags::default() };
    let said = |vars: &[(&str, &str)], listen: Option<&str>, path: &str| {
        let flags = Flags { listen: listen.map(str::to_owned), ..flags.clone() };
        let env = vars.iter().copied().collect();
        let loaded = parse("p.yaml", text.as_bytes(), &flags, &env).unwrap();
        let entry = loaded.effective.get(path).unwrap().clone();
        format!("{}  # {}", entry.value, entry.origin)
    };
    let addr = "server.http.addr";
    let plain = [("GATEWAY", "7000")];
    let both = [("GATEWAY", "7000"), ("GATEWAY_HTTP_ADDR", ":8000")];
    assert_eq!(said(&[], None, addr), "10.0.0.1:1  # p.yaml:3");
    assert_eq!(said(&plain, None, addr), "10.0.0.1:7000  # environment GATEWAY");
    assert_eq!(said(&both, None, addr), "0.0.0.0:8000  # environment GATEWAY_HTTP_ADDR");
    assert_eq!(said(&both, Some(":9000"), addr), "0.0.0.0:9000  # flag --listen");
    assert_eq!(said(&[], None, "server.http.timeout"), "5s  # p.yaml:3 (with T)");
    assert_eq!(
        said(&[("LOG_LEVEL", "DEBUG")], None, "log.level"),
        "debug  # environment LOG_LEVEL"
    );
    assert_eq!(said(&[("LOG_LEVEL", "")], None, "log.level"), "warn  # p.yaml:4");
    assert_eq!(said(&[], None, "log.format"), "auto  # default");
    assert_eq!(said(&[], None, "data.dir"), "/d  # flag --data");
}

#[test]
fn print_shows_one_line_a_value_with_origins_below_each_other() {
    let loaded = parsed("version: 1\nproviders: {openai: {api_key: x}}", &[]).unwrap();
    let printed = loaded.effective.to_string();
    assert!(printed.starts_with("version = 1"), "{printed}");
    let secret = printed.lines().find(|line| line.contains("api_key")).unwrap();
    assert!(secret.starts_with("providers.openai.api_key = [redacted] "), "{secret}");
    assert!(secret.ends_with("# p.yaml:2"), "{secret}");
    let places: std::collections::BTreeSet<_> = printed.lines().map(|l| l.find('#')).collect();
    assert_eq!(places.len(), 1, "{printed}");
}

#[test]
fn a_key_in_the_environment_adds_a_provider_only_where_no_file_says_who_is_asked() {
    let env = [("OPENAI_API_KEY", "k"), ("OPENAI_MODEL", "a, b")].into_iter().collect();
    let config = load(None, &Flags::default(), &env).unwrap().config;
    assert_eq!(config.providers["openai"].base_url.to_string(), "https://api.openai.com/v1");
    let models = config.providers["openai"].models.as_ref().unwrap();
    assert_eq!(models.keys().collect::<Vec<_>>(), ["a", "b"]);
    let with = |text: &str| parse("p.yaml", text.as_bytes(), &Flags::default(), &env).unwrap();
    let other = with("version: 1\nupstreams: [{url: 'http://h'}]");
    assert!(other.config.providers.is_empty());
    assert_eq!(
        other.warnings[0].to_string(),
        "OPENAI_API_KEY (environment): providers.openai: has no effect yet: the file names no such \
         provider, so it is not used"
    );
    let named = with("version: 1\nproviders: {openai: {api_key: old, models: {x: y}}}");
    let openai = &named.config.providers["openai"];
    assert_eq!(openai.api_key.as_ref().unwrap().expose(), "k");
}

#[test]
fn a_store_in_the_environment_is_answered_with_a_warning() {
    let env = [("DB_HOST", "h")].into_iter().collect();
    let loaded = load(None, &Flags::default(), &env).unwrap();
    assert_eq!(loaded.warnings.len(), 1);
    assert!(loaded.warnings[0].to_string().starts_with("DB_HOST (environment): data: "));
}

#[test]
fn an_address_in_the_environment_is_enough_to_share_the_ledger_and_a_password_is_not() {
    let with = |env: &[(&str, &str)]| {
        let env = env.iter().copied().collect();
        load(None, &Flags::default(), &env).unwrap().config.data.redis
    };
    assert_eq!(with(&[("REDIS_PASSWORD", "p")]), None);
    let redis = with(&[("REDIS_ADDR", "r:6379,[::1]:7000"), ("REDIS_PASSWORD", "p")]).unwrap();
    assert_eq!(redis.addr.to_string(), "r:6379,[::1]:7000");
    assert_eq!(redis.addr.0[1], ("::1".to_owned(), 7_000));
    assert_eq!(redis.password.unwrap().expose(), "p");
}

#[test]
fn certificates_for_consul_in_the_environment_count_where_it_is_asked_over_tls() {
    let with = |addr| {
        let env = [
            ("CONSUL_HTTP_ADDR", addr),
            ("CONSUL_CACERT", "ca.pem"),
            ("CONSUL_CLIENT_CERT", "c.pem"),
            ("CONSUL_CLIENT_KEY", "k.pem"),
        ];
        let env = env.into_iter().collect();
        load(None, &Flags::default(), &env).unwrap().config.discovery.consul.unwrap()
    };
    let consul = with("https://c:8501");
    assert_eq!(consul.ca, Some("ca.pem".into()));
    assert_eq!(consul.own, Some(("c.pem".into(), "k.pem".into())));
    let consul = with("c:8500");
    assert_eq!((consul.ca, consul.own), (None, None));
}

#[test]
fn with_nothing_said_the_demo_is_served_on_loopback() {
    let config = load(None, &Flags::default(), &Env::default()).unwrap().config;
    assert!(config.is_demo() && config.keys.is_empty());
    assert_eq!(config.server.http.addr.to_string(), "127.0.0.1:8080");
    let flags = Flags { upstreams: vec!["http://h:1".into()], ..Flags::default() };
    let config = load(None, &flags, &Env::default()).unwrap().config;
    assert!(!config.is_demo());
    assert_eq!(config.upstreams[0].name, "h:1");
}

#[test]
fn variables_are_put_in_after_the_yaml_was_read() {
    let vars = [("NAME", "a: b # c\n"), ("EMPTY", "")];
    let text = "version: 1\nsession:\n  summary_model: x${EMPTY:-y}$${NAME}\n";
    let loaded = parsed(text, &vars).unwrap();
    assert_eq!(loaded.config.session.summary_model.unwrap(), "xy${NAME}");
    let told = parsed("version: 1\nsession: {summary_model: \"${NAME}\"}", &vars).unwrap_err();
    assert_eq!(
        told.to_string(),
        "p.yaml:2:26: session.summary_model: must not be empty or contain control characters"
    );
    assert!(parsed("version: 1\nlog: &l {level: info}\nlog2: *l", &[]).is_err());
}

#[test]
fn a_secret_is_read_from_a_file_and_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    std::fs::write(&path, "  top secret \n").unwrap();
    let text = format!("providers: {{openai: {{api_key: 'file:{}'}}}}", path.display());
    assert_eq!(config(&text).providers["openai"].api_key.as_ref().unwrap().expose(), "top secret");
    std::fs::write(&path, "two\nlines").unwrap();
    assert!(errors(&text).ends_with("a secret is one line that is not empty"));
}

#[test]
fn limits_and_keys_are_read_for_every_level() {
    let hash = format!("sha256:{}", "ab".repeat(32));
    let config = config(&format!(
        "tenants:\n  acme:\n    daily_tokens: 1_000\n    carry_debt: true\n    users: {{ada: {{rpm: 5}}}}\n    \
         per_user: {{daily_usd: 0.5}}\nkeys:\n  - {{hash: '{hash}', tenant: acme, user: ada, tpm: 9, models: [m]}}\n"
    ));
    let acme = &config.tenants["acme"];
    assert_eq!(acme.limits.daily_tokens, Some(Tokens(1_000)));
    assert!(acme.carry_debt);
    assert_eq!(acme.users["ada"].rpm, Some(5));
    assert_eq!(acme.per_user.as_ref().unwrap().daily_usd, Some(MicroUsd(500_000)));
    let key = &config.keys[0];
    assert_eq!((key.name.as_str(), key.limits.tpm), ("abababababab", Some(Tokens(9))));
    assert_eq!(key.models.as_deref(), Some(&["m".to_owned()][..]));
}

#[test]
fn a_rule_replaces_what_its_provider_says_of_a_model() {
    let config = config(
        "providers: {openai: {max_rps: 50, models: {small: gpt, big: gpt-big, old: gpt-old}}}\n\
         models: {small: {endpoints: [{url: 'http://a', model: qwen}]}}\n\
         upstreams: [{url: 'http://b'}]\n\
         rules:\n  - {model_name: small, provider_id: openai, priority: 3, weight: 7}\n  \
         - {model_name: old, provider_id: openai, is_enabled: false}\n",
    );
    let told: Vec<String> = config
        .routes()
        .iter()
        .map(|route| {
            let serves = match &route.serves {
                Serves::Model { name, upstream } => format!("{name}={upstream}"),
                Serves::Discovered { .. } => "?".to_owned(),
            };
            let (tier, weight, rps) = (route.priority, route.weight, route.max_rps);
            format!("{} {serves} tier {tier} weight {weight} rps {rps:?}", route.name)
        })
        .collect();
    let expected = [
        "a small=qwen tier 1 weight 100 rps None",
        "b ? tier 1 weight 100 rps None",
        "openai small=gpt tier 3 weight 7 rps Some(50)",
        "openai big=gpt-big tier 2 weight 100 rps Some(50)",
    ];
    assert_eq!(told, expected);
}

#[test]
fn only_what_a_process_is_built_on_needs_a_restart() {
    let old = config("");
    let live = config("routing: {max_retries: 1}\ntenants: {t: {daily_tokens: 1}}");
    assert_eq!(restart_required(&old, &live), Vec::<String>::new());
    let dead = config(
        "server: {http: {addr: ':1'}}\ndata: {dir: x}\njournal: {fsync: always}\nlog: {format: json, level: debug}",
    );
    let told = ["server.http.addr", "data.dir", "journal.fsync", "log.level", "log.format"];
    assert_eq!(restart_required(&old, &dead), told);
}

#[test]
fn how_long_redis_is_waited_for_applies_at_once_and_where_it_is_does_not() {
    let redis = |more: &str| config(&format!("data: {{redis: {{addr: 'r:1'{more}}}}}"));
    let old = redis("");
    let waits = |config: &Config| {
        let owner = Some(control::quota::OwnerId(1));
        crate::convert::quota_config(config, owner, false).fallback_wait()
    };
    assert_eq!(waits(&old), Duration::from_millis(50));
    let new = redis(", fallback_after: 120ms");
    assert_eq!(waits(&new), Duration::from_millis(120));
    assert_eq!(restart_required(&old, &new), Vec::<String>::new());
    for other in [redis(", db: 1, fallback_after: 120ms"), redis(", read_timeout: 1s"), config("")]
    {
        assert_eq!(restart_required(&old, &other), ["data.redis"]);
    }
}

#[test]
fn an_endpoint_without_a_stated_maximum_has_none() {
    let text = "upstreams: [{url: 'http://a:1'}, {url: 'http://b:1', in_flight_max: 7}]";
    let routes = crate::convert::routes(&config(text)).unwrap();
    let most: Vec<u32> = routes.values().map(|route| route.in_flight_max).collect();
    assert_eq!(most, [u32::MAX, 7]);
}

#[test]
fn a_deadline_that_another_cuts_short_is_warned_of_where_the_file_gives_it() {
    let warned = |text: &str| {
        let loaded = parsed(&format!("version: 1\n{text}"), &[]).unwrap();
        loaded.warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let short = "server: {http: {timeout: 30s}}\n";
    assert_eq!(warned(short), [""; 0], "the default is nobody's wish");
    let says = "over HTTP an exchange ends after 30s (server.http.timeout)";
    let model = "m: {endpoints: [{url: 'http://a:1'}], timeouts: {request: 31s}}";
    for (file, path) in [
        ("routing: {timeout: 1h}".to_owned(), "p.yaml:3:11: routing.timeout"),
        ("routing: {timeouts: {request: 1h}}".to_owned(), "p.yaml:3:22: routing.timeouts.request"),
        (format!("models: {{{model}}}"), "p.yaml:3:59: models.m.timeouts.request"),
    ] {
        assert_eq!(warned(&format!("{short}{file}")), [format!("{path}: {says}")]);
    }
    assert_eq!(warned(&format!("{short}routing: {{timeouts: {{request: 30s}}}}")), [""; 0]);
}
