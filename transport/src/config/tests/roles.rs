//! What each role takes of a file that all of them read.

use std::time::Duration;

use super::*;
use crate::keys::KeyHash;

/// What a role takes of a file.
fn played(role: Role, text: &str, vars: &[(&str, &str)]) -> Result<Loaded, Errors> {
    let flags = Flags { role, ..Flags::default() };
    parse(
        "p.yaml",
        format!("version: 1\n{text}").as_bytes(),
        &flags,
        &vars.iter().copied().collect(),
    )
}

#[test]
fn roles_that_ask_for_keys_have_names_and_limits_and_no_hashes() {
    let hash = KeyHash::of("k").to_string();
    let shared = format!(
        "auth: {{url: 'auth://a:8082', grace: 1m}}\nchats: [{{url: 'chat://c:8081'}}]\n\
         keys: [{{hash: '{hash}', name: k, rpm: 3, daily_tokens: 9}}]"
    );
    for role in [Role::Gateway, Role::Chat] {
        let Loaded { config, warnings, .. } = played(role, &shared, &[]).unwrap();
        assert_eq!(config.keys[0].hash, None, "{role:?}");
        assert_eq!(config.auth.remote.unwrap().url.to_string(), "auth://a:8082");
        assert!(warnings.iter().any(|warning| warning.to_string().contains("hashes")));
    }
    let auth = played(Role::Auth, &shared, &[]).unwrap().config;
    assert_eq!((auth.keys[0].hash.map(|hash| hash.to_string()), auth.auth.remote), {
        (Some(hash), None)
    });
    let all = played(Role::All, &shared, &[]).unwrap();
    assert_eq!(all.config.auth.remote, None);
    assert!(all.warnings.iter().any(|one| one.to_string().contains("judges keys itself")));
    // Limits of a key by its name alone: what a file without secrets holds.
    let named = "auth: {url: 'auth://a'}\nkeys: [{name: k, rpm: 3}]";
    let chat = played(Role::Chat, named, &[]).unwrap();
    assert!(!chat.warnings.iter().any(|warning| warning.to_string().contains("hashes")));
    assert_eq!(chat.config.keys[0].name, "k");
    let told = played(Role::Auth, named, &[]).unwrap_err().to_string();
    assert!(told.contains("keys[0].hash: missing"), "{told}");
    let told = played(Role::Chat, "auth: {url: 'auth://a'}\nkeys: [{rpm: 3}]", &[]).unwrap_err();
    assert!(told.to_string().contains("keys[0].name: missing"), "{told}");
}

#[test]
fn a_key_is_named_in_no_more_bytes_than_other_roles_take() {
    let (hash, most, more) = (KeyHash::of("k"), "n".repeat(200), "n".repeat(201));
    for role in [Role::All, Role::Auth] {
        let keys = |name: &str, user: &str| {
            format!("keys: [{{hash: '{hash}', name: {name}, user: {user}}}]")
        };
        assert!(played(role, &keys(&most, &most), &[]).is_ok());
        let told = played(role, &keys(&more, "ann"), &[]).unwrap_err().to_string();
        assert!(
            told.contains("keys[0].name: a name has at most 200 bytes, and this one 201"),
            "{told}"
        );
        let told = played(role, &keys("laptop", &more), &[]).unwrap_err().to_string();
        assert!(told.contains("keys[0].user: a name has at most 200 bytes"), "{told}");
    }
}

#[test]
fn the_gateways_variable_moves_no_other_roles_port() {
    let keys = format!("keys: [{{hash: '{}'}}]\nchats: [{{url: 'chat://c'}}]", KeyHash::of("k"));
    let grpc = |role, vars: &[(&str, &str)]| {
        let addr = played(role, &keys, vars).unwrap().config.server.grpc_addr;
        addr.map(|addr| addr.to_string()).unwrap_or_default()
    };
    let vars = [("GATEWAY_GRPC_ADDR", ":9001"), ("CHAT_SERVICE", "7001"), ("AUTH_GRPC", "7002")];
    for (role, alone, with_its_own) in [
        (Role::All, "0.0.0.0:9001", "0.0.0.0:9001"),
        (Role::Gateway, "0.0.0.0:9001", "0.0.0.0:9001"),
        (Role::Chat, "127.0.0.1:8081", "127.0.0.1:7001"),
        (Role::Auth, "127.0.0.1:8082", "127.0.0.1:7002"),
    ] {
        assert_eq!(grpc(role, &vars[..1]), alone, "{role:?}");
        assert_eq!(grpc(role, &vars), with_its_own, "{role:?}");
    }
}

#[test]
fn one_layer_hedges_and_it_is_the_one_that_speaks_to_workers() {
    let text = "chats: [{url: 'chat://c:8081'}]\nrouting: {hedge: {after: 800ms}}\n\
                models: {m: {hedge: {after: 2s}, endpoints: [{url: 'http://a:1'}]}}";
    let hedges = |role| {
        let config = played(role, text, &[]).unwrap().config;
        (config.routing.hedge.after, config.models["m"].hedge_after)
    };
    let (after, own) = (Duration::from_millis(800), Duration::from_secs(2));
    assert_eq!(hedges(Role::Chat), (after, Some(own)));
    assert_eq!(hedges(Role::Gateway), (Duration::ZERO, None));
}

#[test]
fn the_auth_role_has_ports_of_its_own_and_the_flag_wins() {
    let keys = format!("keys: [{{hash: '{}'}}]", KeyHash::of("k"));
    let server = |vars: &[(&str, &str)]| {
        let server = played(Role::Auth, &keys, vars).unwrap().config.server;
        (server.grpc_addr.unwrap().to_string(), server.admin.addr.to_string())
    };
    let both = |one: &str, other: &str| (one.to_owned(), other.to_owned());
    assert_eq!(server(&[]), both("127.0.0.1:8082", "127.0.0.1:8083"));
    let ports = [("AUTH_GRPC", "7001"), ("AUTH_HTTP_HEALTH", "7002")];
    assert_eq!(server(&ports), both("127.0.0.1:7001", "127.0.0.1:7002"));
    let addrs = [ports[0], ports[1], ("AUTH_GRPC_ADDR", ":7003"), ("AUTH_HTTP_HEALTH_ADDR", "")];
    assert_eq!(server(&addrs), both("0.0.0.0:7003", "127.0.0.1:7002"));
    let flags =
        Flags { role: Role::Auth, listen: Some("127.0.0.1:7004".into()), ..Flags::default() };
    let text = format!("version: 1\n{keys}");
    let loaded = parse("p.yaml", text.as_bytes(), &flags, &addrs.into_iter().collect()).unwrap();
    assert_eq!(loaded.config.server.grpc_addr.unwrap().port(), 7004);
    let same = [("AUTH_GRPC", "7001"), ("AUTH_HTTP_HEALTH", "7001")];
    let told = played(Role::Auth, &keys, &same).unwrap_err().to_string();
    assert!(told.contains("the same address as server.grpc.addr"), "{told}");
    let told = played(Role::Auth, "", &[]).unwrap_err().to_string();
    assert!(told.contains("keys: missing") && told.contains("pointsman key new"), "{told}");
    // A process that runs has its last key taken away, and says so.
    for gone in ["", "keys: []", "keys:"] {
        let flags = Flags { role: Role::Auth, running: true, ..Flags::default() };
        let text = format!("version: 1\n{gone}");
        let loaded = parse("p.yaml", text.as_bytes(), &flags, &Env::default()).unwrap();
        assert_eq!(loaded.config.keys, []);
        let warned = loaded.warnings.iter().any(|one| one.to_string().contains("nobody is let in"));
        assert!(warned, "{gone} {:?}", loaded.warnings);
    }
}

#[test]
fn chat_roles_that_share_nothing_warn_of_what_they_count_apart() {
    let warned = |role, limits: &str, chats: usize, more: &str| {
        let chats: Vec<_> = (0..chats).map(|at| format!("{{url: 'chat://c{at}'}}")).collect();
        let text = format!("tenants: {{t: {limits}}}\nchats: [{}]\n{more}", chats.join(", "));
        let warnings = played(role, &text, &[]).unwrap().warnings;
        warnings.iter().any(|one| one.to_string().contains("up to 3 times as much may be spent"))
    };
    let redis = "data: {redis: {addr: 'r:1'}}";
    for role in [Role::Gateway, Role::Chat] {
        assert!(warned(role, "{daily_tokens: 9}", 3, ""));
        assert!(warned(role, "{users: {ann: {monthly_usd: 9}}}", 3, ""));
        assert!(warned(role, "{per_user: {daily_usd: 9}}", 3, ""));
        assert!(!warned(role, "{daily_tokens: 9}", 3, redis));
        assert!(!warned(role, "{rpm: 9}", 3, ""), "rates are the gateways'");
        assert!(!warned(role, "{daily_tokens: 9}", 1, ""));
    }
    assert!(!warned(Role::All, "{daily_tokens: 9}", 3, ""));
}

#[test]
fn a_port_alone_keeps_the_host_of_the_file() {
    let keys = format!("keys: [{{hash: '{}'}}]", KeyHash::of("k"));
    let server = |role, server: &str, vars: &[(&str, &str)]| {
        played(role, &format!("{keys}\n{server}"), vars).unwrap().config.server
    };
    let text =
        "server: {grpc: {addr: '10.0.0.7:1'}, quota: {addr: '[::1]:2'}, admin: {addr: ':3'}}";
    let chat = server(Role::Chat, text, &[("CHAT_SERVICE", "7001"), ("TOKEN_SERVICE", "7002")]);
    assert_eq!(chat.grpc_addr.unwrap().to_string(), "10.0.0.7:7001");
    assert_eq!(chat.quota_addr.unwrap().to_string(), "[::1]:7002");
    let ports = [("AUTH_GRPC", "7003"), ("AUTH_HTTP_HEALTH", "7004")];
    let auth = server(Role::Auth, text, &ports);
    assert_eq!(auth.grpc_addr.unwrap().to_string(), "10.0.0.7:7003");
    assert_eq!(auth.admin.addr.to_string(), "0.0.0.0:7004");
    assert_eq!(server(Role::Auth, "", &ports).admin.addr.to_string(), "127.0.0.1:7004");
    for metrics in ["", "server: {admin: {addr: ':9090'}}"] {
        let text = format!("monitoring: {{prometheus: {{addr: ':9090'}}}}\n{metrics}");
        assert_eq!(server(Role::Auth, &text, &ports).admin.addr.to_string(), "0.0.0.0:7004");
    }
}

#[test]
fn the_ledgers_own_port_is_for_those_who_ask_it_and_nobody_elses() {
    let port = |role, vars: &[(&str, &str)]| {
        let text = "server: {quota: {addr: ':7001'}}\nchats: [{url: 'chat://c'}]";
        played(role, text, vars).unwrap().config.server.quota_addr.map(|addr| addr.to_string())
    };
    for role in [Role::All, Role::Chat] {
        assert_eq!(played(role, "", &[]).unwrap().config.server.quota_addr, None);
        assert_eq!(port(role, &[]).unwrap(), "0.0.0.0:7001");
        assert_eq!(port(role, &[("TOKEN_SERVICE", "50051")]).unwrap(), "0.0.0.0:50051");
        let both = [("TOKEN_SERVICE", "50051"), ("TOKEN_SERVICE_ADDR", ":7002")];
        assert_eq!(port(role, &both).unwrap(), "0.0.0.0:7002");
    }
    assert_eq!(port(Role::Gateway, &[("TOKEN_SERVICE", "50051")]), None);
    for (role, addr, whose) in [
        (Role::All, "127.0.0.1:8080", "server.http.addr"),
        (Role::All, "127.0.0.1:9000", "server.grpc.addr, which serves QuotaService already"),
        (Role::Chat, "127.0.0.1:9000", "server.grpc.addr, which serves QuotaService already"),
        (Role::Chat, "127.0.0.1:9090", "server.admin.addr"),
    ] {
        let text =
            format!("server: {{grpc: {{addr: '127.0.0.1:9000'}}, quota: {{addr: '{addr}'}}}}");
        let told = played(role, &text, &[]).unwrap_err().to_string();
        assert!(
            told.contains(&format!("server.quota.addr: the same address as {whose}")),
            "{told}"
        );
    }
    // The chat role has no port for HTTP.
    assert!(played(Role::Chat, "server: {quota: {addr: '127.0.0.1:8080'}}", &[]).is_ok());
    let told = played(Role::Chat, "", &[("TOKEN_SERVICE", "8081")]).unwrap_err().to_string();
    assert!(told.contains("server.quota.addr: the same address as server.grpc.addr"), "{told}");
}

#[test]
fn what_cannot_be_an_auth_role_is_refused_in_words() {
    for (text, words) in [
        ("auth: {url: 'chat://a'}", "auth://host:port"),
        ("auth: {url: 'auth://a/v1'}", "no path"),
        ("auth: {tls: {ca: ca.pem}}", "goes with `url`"),
        ("auth: {url: 'auth://a', tls: {ca: ca.pem}}", "auths://"),
        ("auth: {url: 'auths://a', tls: {cert: c.pem}}", "goes with `key`"),
        ("auth: {ttl: 0s}", "1s to 5m"),
        ("upstreams: [{url: 'auth://a'}]", "name it as auth.url"),
        ("chats: [{url: 'auth://a'}]", "chat://host:port"),
    ] {
        let told = played(Role::All, text, &[]).unwrap_err().to_string();
        assert!(told.contains(words), "{text}: {told}");
    }
}
