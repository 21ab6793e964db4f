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
fn one_layer_hedges_and_it_is_the_one_that_speaks_to_workers() {
    let text = "chats: [{url: 'chat://c:8081'}]\nrouting: {hedge: {after: 800ms}}\nmodels: {m: {hedge: {after: 2s}}}";
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
