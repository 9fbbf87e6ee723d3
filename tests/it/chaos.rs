//! Any one node of a real cluster of three may die, freeze, be sealed, step down or be cut off, and
//! no call fails: under 50 calls a second, by a caller that tries nothing again.

use std::time::Duration;

use serde_json::Value;
use testkit::{
    Daemon, DaemonOptions, KEY, Load, LoadReport, MOUNT, Trio, eventually, figures::figure, full, rendered,
    scratch,
};

/// Calls a second.
const RATE: u32 = 50;

/// What happens to one node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Blow {
    /// The network swallows what is sent to it.
    BlackHole,
    /// SIGSTOP, and SIGCONT.
    Freeze,
    /// SIGKILL, and a start.
    Kill,
    /// The network refuses connections to it, and breaks those that are there.
    Refusal,
    /// Sealed, and unsealed.
    Seal,
    /// It gives up being the leader.
    StepDown,
}

/// A cluster and a daemon on it.
struct Arena {
    daemon: Daemon,
    trio: Trio,
    _dir: tempfile::TempDir,
}

impl Arena {
    async fn start() -> Self {
        Self::of(Trio::start().await).await
    }

    async fn of(trio: Trio) -> Self {
        let dir = scratch("arena-");
        let config = dir.path().join("config.yaml");
        rendered::by_rename(&config, &trio.rendered().await.yaml());
        let arguments = ["--log-level", "debug", "--health-check-interval", "2s"];
        let daemon = Daemon::start_with(&config, DaemonOptions::arguments(arguments)).await;
        daemon.wait_ready().await;
        Self { daemon, trio, _dir: dir }
    }

    /// Strikes the node, lets calls come for a while, heals it, and lets more come.
    async fn strike(&mut self, blow: Blow, node: usize) -> LoadReport {
        self.trio.whole().await;
        let leads = self.trio.leader().await == node;
        let load = Load::at_rate(&self.daemon, RATE);
        more_calls(&load, u64::from(RATE) / 2).await;
        let member = &mut self.trio.members[node];
        match blow {
            Blow::BlackHole => self.trio.wires[node].swallow(),
            Blow::Freeze => member.freeze().await,
            Blow::Kill => member.stop(),
            Blow::Refusal => self.trio.wires[node].refuse().await,
            // A standby cannot be sealed by itself: it comes up sealed.
            Blow::Seal if !leads => {
                member.stop();
                member.start_again_sealed().await;
            }
            Blow::Seal => member.seal().await,
            Blow::StepDown => drop(member.api("PUT", "sys/step-down", Value::Null).await),
        }
        let seconds = if full() { 10 } else { 1 };
        more_calls(&load, u64::from(RATE) * seconds).await;
        let member = &mut self.trio.members[node];
        match blow {
            Blow::BlackHole | Blow::Refusal => self.trio.wires[node].mend().await,
            Blow::Freeze => member.thaw(),
            Blow::Kill => {
                member.start_again_sealed().await;
                member.unseal_member().await;
            }
            Blow::Seal => member.unseal_member().await,
            Blow::StepDown => {}
        }
        self.trio.whole().await;
        more_calls(&load, u64::from(RATE) / 2).await;
        load.stop().await
    }
}

async fn more_calls(load: &Load, count: u64) {
    let before = load.calls();
    eventually("calls go on", Duration::from_secs(60), async || load.calls() >= before + count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_whatever_happens_to_one_node_of_three() {
    let mut arena = Arena::start().await;
    for blow in [Blow::Kill, Blow::Freeze, Blow::Seal, Blow::Refusal, Blow::BlackHole, Blow::StepDown] {
        // The leader first; by then another one leads, and its turn comes too.
        let mut turns = vec![arena.trio.leader().await];
        if blow != Blow::StepDown {
            turns.extend((0..3).filter(|node| *node != turns[0]).collect::<Vec<_>>());
        }
        for (turn, node) in turns.into_iter().enumerate() {
            let report = arena.strike(blow, node).await;
            println!("{blow:?} of node {node}: {}", told(&report));
            report.assert_nothing_failed();
            let whom = if turn == 0 { "the leader" } else { "another node" };
            figure("chaos", &format!("{blow:?} of {whom}: {}", told(&report)));
        }
    }
    // The blows were felt: calls did not go by chance to where nothing happened.
    let retries = arena.daemon.metric("transit_kms_retries_total", &[]).await;
    let hedges = arena.daemon.metric("transit_kms_hedges_total", &[("result", "won")]).await;
    println!("{retries} retries, {hedges} hedges won");
    assert!(retries >= 1.0 && hedges >= 1.0, "{retries} {hedges}");
    assert_eq!(arena.daemon.metric("transit_kms_retry_budget_exhausted_total", &[]).await, 0.0);
}

/// Without a quorum there is no leader, so nothing can be written: no key is rotated, no token
/// renewed. But a standby of OpenBao knows the key and the token, and that is all that calls need.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_of_three_dead_encrypt_decrypt_and_status_go_on() {
    let mut arena = Arena::start().await;
    for the_leader_survives in [false, true] {
        arena.trio.whole().await;
        let leader = arena.trio.leader().await;
        let survivor = if the_leader_survives { leader } else { (leader + 1) % 3 };
        let load = Load::at_rate(&arena.daemon, RATE);
        more_calls(&load, u64::from(RATE) / 2).await;
        let dead = [(survivor + 1) % 3, (survivor + 2) % 3];
        for node in dead {
            arena.trio.members[node].stop();
        }
        let seconds = if full() { 60 } else { 4 };
        more_calls(&load, u64::from(RATE) * seconds).await;
        let report = load.stop().await;
        report.assert_nothing_failed();
        let whom = if the_leader_survives { "the leader" } else { "a standby" };
        let told = format!("two of three dead, {whom} survives: {}", told(&report));
        figure("chaos", &told);
        for node in dead {
            arena.trio.members[node].start_again_sealed().await;
        }
        for node in dead {
            arena.trio.members[node].unseal_member().await;
        }
    }
}

/// A server that cannot write its audit log answers nothing but 500.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_while_the_audit_device_of_one_node_does() {
    let arena = Arena::of(Trio::with_audit_disks().await).await;
    let leader = arena.trio.leader().await;
    for node in [leader, (leader + 1) % 3] {
        let member = &arena.trio.members[node];
        let Some(disk) = member.audit_disk() else { return };
        let load = Load::at_rate(&arena.daemon, RATE);
        more_calls(&load, u64::from(RATE) / 2).await;
        disk.fill();
        let path = format!("{MOUNT}/keys/{KEY}");
        eventually("the node fails", Duration::from_secs(10), async || {
            let (status, answer) = member.api_as(member.root_token(), "GET", &path, Value::Null).await;
            if status == 500 { Ok(()) } else { Err(format!("{status} {answer}")) }
        })
        .await;
        more_calls(&load, u64::from(RATE) * 2).await;
        disk.free();
        more_calls(&load, u64::from(RATE) / 2).await;
        let report = load.stop().await;
        report.assert_nothing_failed();
        let whom = if node == leader { "the leader" } else { "another node" };
        figure("chaos", &format!("audit device of {whom} fails: {}", told(&report)));
    }
}

/// A summary of the run, for the log of the tests.
fn told(report: &LoadReport) -> String {
    format!("{} calls, none failed, the longest took {:?}", report.calls, report.longest)
}
