#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

//! What a changed file may do to who is let in.

use super::*;
use crate::config::{Env, Flags, Role, parse};
use crate::keys::KeyHash;

fn config(role: Role, text: &str) -> Config {
    let flags = Flags { role, ..Flags::default() };
    let text = format!("version: 1\nchats: [{{url: 'chat://c:8081'}}]\n{text}");
    let loaded = parse("c.yaml", text.as_bytes(), &flags, &Env::default());
    loaded.unwrap_or_else(|errors| panic!("{errors}")).config
}

fn keyed(role: Role, more: &str) -> Config {
    let keys = [KeyHash::of("ann"), KeyHash::of("bob")];
    let [ann, bob] = keys.map(|hash| hash.to_string());
    config(
        role,
        &format!(
            "tenants: {{acme: {{rpm: 7}}}}\nkeys: [{{hash: '{ann}', name: ann, tenant: acme, rpm: 3, daily_tokens: 9}}, {{hash: '{bob}', \
             name: bob}}]\n{more}"
        ),
    )
}

fn accounts(config: &Config) -> Arc<Accounts> {
    Accounts::new(config, AccountIds::new([7; 32]), None)
}

/// Who is let in with this; the tenant.
fn judged(accounts: &Accounts, bearer: Option<&str>) -> Result<String, AuthError> {
    accounts.judge(bearer, None).map(|caller| caller.tenant_name.to_string())
}

fn nobody_comes_in(accounts: &Accounts) {
    assert_eq!(judged(accounts, None), Err(AuthError::KeyMissing));
    assert_eq!(judged(accounts, Some("ann")), Err(AuthError::KeyUnknown));
}

#[test]
fn a_process_that_never_had_keys_lets_its_own_machine_in() {
    let accounts = accounts(&config(Role::All, ""));
    assert_eq!(judged(&accounts, None), Ok("default".to_owned()));
    accounts.set_config(&config(Role::All, "log: {level: debug}"));
    assert_eq!(judged(&accounts, None), Ok("default".to_owned()));
}

#[test]
fn a_file_that_lost_its_last_key_lets_nobody_in() {
    for role in [Role::All, Role::Gateway, Role::Chat] {
        let accounts = accounts(&keyed(role, ""));
        assert_eq!(judged(&accounts, Some("ann")), Ok("acme".to_owned()));
        accounts.set_config(&config(role, ""));
        nobody_comes_in(&accounts);
        accounts.set_config(&keyed(role, ""));
        assert_eq!(judged(&accounts, Some("ann")), Ok("acme".to_owned()));
        assert_eq!(judged(&accounts, None), Err(AuthError::KeyMissing));
    }
}

#[test]
fn a_port_beyond_loopback_is_never_without_keys() {
    let accounts = accounts(&config(Role::All, ""));
    accounts.shut();
    nobody_comes_in(&accounts);
    accounts.set_config(&config(Role::All, ""));
    nobody_comes_in(&accounts);
}

#[test]
fn a_file_that_gives_the_keys_to_an_auth_role_leaves_them_as_they_are_until_a_restart() {
    for role in [Role::Gateway, Role::Chat] {
        let started = keyed(role, "");
        let accounts = accounts(&started);
        for moved in [
            keyed(role, "auth: {url: 'auth://a:8082'}"),
            config(role, "auth: {url: 'auth://a:8082'}"),
            config(role, "auth: {url: 'auth://a:8082'}\nkeys: [{name: ann, rpm: 9}]"),
        ] {
            let in_force = accounts.set_config(&moved).into_owned();
            assert_eq!(judged(&accounts, Some("ann")), Ok("acme".to_owned()), "{role:?}");
            assert_eq!(judged(&accounts, Some("bob")), Ok("default".to_owned()));
            assert_eq!(judged(&accounts, None), Err(AuthError::KeyMissing));
            assert_eq!(judged(&accounts, Some("eve")), Err(AuthError::KeyUnknown));
            // Nor do they become keys without limits.
            assert_eq!((&in_force.keys, &in_force.tenants), (&started.keys, &started.tenants));
            assert_eq!(in_force.auth.remote, None);
        }
        // The file is as it was, but for a key.
        let taken = format!("keys: [{{name: ann, hash: '{}'}}]", KeyHash::of("ann"));
        accounts.set_config(&config(role, &taken));
        assert_eq!(judged(&accounts, Some("ann")), Ok("default".to_owned()));
        assert_eq!(judged(&accounts, Some("bob")), Err(AuthError::KeyUnknown));
    }
}

#[test]
fn a_process_that_asks_an_auth_role_never_judges_keys_itself() {
    for role in [Role::Gateway, Role::Chat] {
        let started = config(role, "auth: {url: 'auth://a:8082'}\ntenants: {acme: {rpm: 7}}");
        let accounts = accounts(&started);
        nobody_comes_in(&accounts);
        let in_force = accounts.set_config(&keyed(role, "")).into_owned();
        assert_eq!(in_force.auth.remote, started.auth.remote);
        nobody_comes_in(&accounts);
        // Whom the auth role names is known as before.
        accounts.set_config(&config(role, ""));
        assert!(accounts.knows_tenant("acme"));
    }
}

#[test]
fn a_key_made_at_the_start_stays_as_long_as_no_file_names_others() {
    let bare = config(Role::All, "");
    let accounts = accounts(&bare);
    let own = KeyEntry { name: "own".into(), ..keyed(Role::All, "").keys.remove(1) };
    accounts.set_own_key(own, &bare);
    assert_eq!(judged(&accounts, None), Err(AuthError::KeyMissing));
    for _ in 0..2 {
        accounts.set_config(&bare);
        assert_eq!(judged(&accounts, Some("bob")), Ok("default".to_owned()));
        let only = format!("keys: [{{name: eve, hash: '{}'}}]", KeyHash::of("eve"));
        accounts.set_config(&config(Role::All, &only));
        assert_eq!(judged(&accounts, Some("bob")), Err(AuthError::KeyUnknown));
    }
}
