//! Doors: machines that play the gateway role in front of gateways, which play the chat role then.
//!
//! A door is the product's gateway with `--role gateway`: HTTP for clients, its own journal, shadow and disk, and
//! `chats: [chat://...]` behind it. Whom it asks is the product with `--role chat`, which serves `ChatService` over gRPC
//! on a simulated socket. All are started on one file, as a deployment's are. So a link lies between the two roles, and
//! everything that goes wrong with links and processes goes wrong with it and with either end.
//!
//! **What is judged behind doors** is what is judged without: each chat role's journal, ledger, shadow and recovery, what
//! workers are asked and let go of, a Redis that they share, and what clients see. A client knows its request by the
//! door's name for it, and a chat role by its own. The judge joins the two by the client's trace, which travels all the
//! way ([`super::check`] has the book). On top of that:
//!
//! - one try of a client is one request, at one chat role: a door that asks again after anything but a refused connection
//!   breaks the third, and so does one that asks twice;
//! - an answer belongs to who asked, or to who asked under the same key, and is from the chat role that the door names;
//! - what a client is told of its use is what that chat role's journal charges, and stays charged; a key is charged once by
//!   each chat role, however often doors bring it, and once by all that share a ledger where nothing is wrong with that.
//!
//! **What is judged of a door's own plane**: that its journal is written, read back and recovered (10), that its shadow
//! agrees (11), that its own book adds up (1), that a clean end is in its journal with the use that the client was told,
//! that it drains (9), and that nothing panics or aborts (7).
//!
//! **What is not**: rates, which no plan limits; to how many chat roles a door spreads its sessions; that a session stays
//! at one of them; stored sessions and embeddings through a door; of a resumable stream what the door itself counts of it; the
//! auth role; TLS between roles; and a registry beside doors.

use std::fmt::Write as _;
use std::ops::Range;

use control::rng::Rng;
use transport::config::Role;

use super::draw::{between, chance, small};
use super::plan::{Fault, TierBPlan, TimedFault, client, gateway, replica};

/// The port the chat role listens on.
pub(super) const PORT: u16 = 8_081;

/// How many doors a seed's plan has: a quarter of the plans have one or two, most of those before two gateways.
pub(super) fn drawn(root: &Rng, gateways: &mut u8) -> u8 {
    let mut rng = root.fork("doors");
    if !chance(&mut rng, 25) {
        return 0;
    }
    if chance(&mut rng, 75) {
        *gateways = (*gateways).max(2);
    }
    1 + u8::from(chance(&mut rng, 40))
}

/// What a machine plays.
pub(super) fn role(plan: &TierBPlan, machine: u8) -> Role {
    match plan.doors {
        0 => Role::All,
        _ if plan.is_door(machine) => Role::Gateway,
        _ => Role::Chat,
    }
}

/// The machines at the other side of the link between the roles.
pub(super) fn across(plan: &TierBPlan, machine: u8) -> Range<u8> {
    match role(plan, machine) {
        Role::Gateway => 0..plan.gateways,
        Role::Chat => plan.gateways..plan.machines(),
        Role::All | Role::Auth => 0..0,
    }
}

/// The part of the configuration that says where the chat roles are: the same file for both, in which a door may lack the
/// last ones.
pub(super) fn listed(plan: &TierBPlan, machine: u8, without: u8) -> String {
    if plan.doors == 0 {
        return String::new();
    }
    let without = if plan.is_door(machine) { without } else { 0 };
    let mut text = String::from("chats:\n");
    for chat in (0..plan.gateways.saturating_sub(without).max(1)).map(gateway) {
        let _ = writeln!(text, "  - {{url: 'chat://{chat}:{PORT}', name: {chat}}}");
    }
    text
}

/// A link that carries something: either end first.
pub(super) fn link(plan: &TierBPlan, rng: &mut Rng) -> (String, String) {
    let near = small(rng.below(u64::from(plan.machines())));
    let far = match (plan.is_door(near), chance(rng, 60)) {
        (true, true) | (false, false) => some_across(plan, rng, near),
        (true, false) => client(small(rng.below(u64::from(plan.clients)))),
        (false, true) => replica(small(rng.below(u64::from(plan.replicas)))),
    };
    if chance(rng, 50) { (gateway(near), far) } else { (far, gateway(near)) }
}

fn some_across(plan: &TierBPlan, rng: &mut Rng, machine: u8) -> String {
    let across = across(plan, machine);
    gateway(across.start + small(rng.below(across.len() as u64)))
}

const KINDS: usize = 7;
const ROLLING: usize = 6;
/// From one restart of a rolling one to the next: some overlap.
const ROLLS_MS: (u64, u64) = (500, 6_000);

/// What goes wrong between the roles, and with either of them, besides what goes wrong everywhere.
pub(super) fn faults(plan: &TierBPlan, rng: &mut Rng) -> Vec<TimedFault> {
    let over = plan.heal_ms();
    let is_on: Vec<bool> = (0..KINDS).map(|_| chance(rng, 50)).collect();
    let mut faults = Vec::new();
    for kind in (0..KINDS).filter(|kind| is_on[*kind]) {
        let at_ms = between(rng, 1_000, over - 1_000);
        let for_ms = between(rng, 50, 6_000).min(over - at_ms);
        if kind == ROLLING {
            let every = between(rng, ROLLS_MS.0, ROLLS_MS.1);
            let rolled = (0..plan.gateways).map(|gateway| TimedFault {
                at_ms: (at_ms + u64::from(gateway) * every).min(over - 1),
                for_ms: 0,
                fault: Fault::Restart { gateway },
            });
            faults.extend(rolled);
        } else {
            faults.push(TimedFault { at_ms, for_ms, fault: fault(plan, rng, kind) });
        }
    }
    faults
}

fn fault(plan: &TierBPlan, rng: &mut Rng, kind: usize) -> Fault {
    let door = plan.gateways + small(rng.below(u64::from(plan.doors)));
    let chat = small(rng.below(u64::from(plan.gateways)));
    let (a, b) = match chance(rng, 50) {
        true => (gateway(door), gateway(chat)),
        false => (gateway(chat), gateway(door)),
    };
    match kind {
        0 => Fault::Cut { a, b },
        1 => Fault::CutOneWay { from: a, to: b },
        2 => Fault::Hold { a, b },
        3 => Fault::Latency { a, b, ms: between(rng, 30, 900) },
        4 => Fault::Kill { gateway: chat },
        _ => Fault::Kill { gateway: door },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_with_doors_is_asked_there_and_the_links_between_the_roles_go_wrong() {
        let plans = (0..200).map(super::super::plan).filter(|plan| plan.doors > 0);
        let (mut count, mut cut) = (0, 0);
        for plan in plans {
            count += 1;
            assert!(plan.operations.iter().all(|asked| plan.is_door(asked.gateway)));
            assert!(!plan.consul && plan.tenants_of(plan.gateways) == 0);
            let doors: Vec<_> = across(&plan, 0).map(gateway).collect();
            let is_there = |name: &String| doors.contains(name);
            cut += usize::from(plan.faults.iter().any(
                |timed| matches!(&timed.fault, Fault::Cut { a, b } if is_there(a) || is_there(b)),
            ));
        }
        assert!((30..80).contains(&count), "{count} of 200 plans have doors");
        assert!(cut > 5, "{cut} of them cut a door off");
    }

    #[test]
    fn a_plan_without_doors_knows_nothing_of_them() {
        let plan = super::super::plan(1);
        let plan = TierBPlan { doors: 0, gateways: 2, ..plan };
        assert_eq!((plan.machines(), plan.fronts()), (2, 0..2));
        assert_eq!(
            (role(&plan, 1), across(&plan, 1), listed(&plan, 1, 0)),
            (Role::All, 0..0, String::new())
        );
    }

    #[test]
    fn a_door_lists_one_chat_role_at_least_and_a_chat_role_all() {
        let plan = TierBPlan { doors: 1, gateways: 2, ..super::super::plan(1) };
        assert_eq!(listed(&plan, 2, 7).lines().count(), 2);
        assert_eq!(listed(&plan, 0, 7).lines().count(), 3);
        assert_eq!((plan.behind(2, 3), plan.behind(1, 3)), (gateway(1), replica(3)));
    }
}
