//! Failures of one node of a real cluster of three. No call fails at 50 calls per second without retries by the
//! client, whether the node crashes, freezes, is sealed, steps down or is cut off.

use std::time::Duration;

use serde_json::Value;
use testkit::{
    Daemon, DaemonOptions, KEY, Load, LoadReport, MOUNT, ThreeNodeVault, config_file, eventually, full,
    measurements::record_measurement, temp_dir,
};

/// Calls per second.
const RATE: u32 = 50;

/// A failure of one node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum NodeFailure {
    /// The network drops all traffic to it.
    BlackHole,
    /// SIGSTOP, later SIGCONT.
    Freeze,
    /// SIGKILL, later a restart.
    Kill,
    /// The network refuses connections to it and closes existing ones.
    Refusal,
    /// Sealed, later unsealed.
    Seal,
    /// It steps down as leader.
    StepDown,
}

/// A cluster, and a daemon that uses it.
struct ClusterWithDaemon {
    daemon: Daemon,
    vault: ThreeNodeVault,
    _dir: tempfile::TempDir,
}

impl ClusterWithDaemon {
    async fn start() -> Self {
        Self::of(ThreeNodeVault::start().await).await
    }

    async fn of(vault: ThreeNodeVault) -> Self {
        let dir = temp_dir("cluster-");
        let config = dir.path().join("config.yaml");
        config_file::by_rename(&config, &vault.rendered().await.yaml());
        let arguments = ["--log-level", "debug", "--health-check-interval", "2s"];
        let daemon = Daemon::start_with(&config, DaemonOptions::arguments(arguments)).await;
        daemon.wait_ready().await;
        Self { daemon, vault, _dir: dir }
    }

    /// Applies the failure to the node under load, ends it, and returns the results of the load.
    async fn run(&mut self, failure: NodeFailure, node: usize) -> LoadReport {
        self.vault.wait_complete().await;
        let leads = self.vault.leader().await == node;
        let load = Load::at_rate(&self.daemon, RATE);
        more_calls(&load, u64::from(RATE) / 2).await;
        let member = &mut self.vault.members[node];
        match failure {
            NodeFailure::BlackHole => self.vault.links[node].drop_traffic(),
            NodeFailure::Freeze => member.freeze().await,
            NodeFailure::Kill => member.stop(),
            NodeFailure::Refusal => self.vault.links[node].refuse().await,
            // `sys/seal` works on the leader only. A standby is sealed after a restart.
            NodeFailure::Seal if !leads => {
                member.stop();
                member.start_again_sealed().await;
            }
            NodeFailure::Seal => member.seal().await,
            NodeFailure::StepDown => drop(member.api("PUT", "sys/step-down", Value::Null).await),
        }
        let seconds = if full() { 10 } else { 1 };
        more_calls(&load, u64::from(RATE) * seconds).await;
        let member = &mut self.vault.members[node];
        match failure {
            NodeFailure::BlackHole | NodeFailure::Refusal => self.vault.links[node].restore().await,
            NodeFailure::Freeze => member.thaw(),
            NodeFailure::Kill => {
                member.start_again_sealed().await;
                member.unseal_member().await;
            }
            NodeFailure::Seal => member.unseal_member().await,
            NodeFailure::StepDown => {}
        }
        self.vault.wait_complete().await;
        more_calls(&load, u64::from(RATE) / 2).await;
        load.stop().await
    }
}

async fn more_calls(load: &Load, count: u64) {
    let before = load.calls();
    eventually("further calls", Duration::from_secs(60), async || load.calls() >= before + count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_while_one_node_of_three_fails() {
    let mut cluster = ClusterWithDaemon::start().await;
    for failure in [
        NodeFailure::Kill,
        NodeFailure::Freeze,
        NodeFailure::Seal,
        NodeFailure::Refusal,
        NodeFailure::BlackHole,
        NodeFailure::StepDown,
    ] {
        // The leader first, then the others; one of them leads by then.
        let mut turns = vec![cluster.vault.leader().await];
        if failure != NodeFailure::StepDown {
            turns.extend((0..3).filter(|node| *node != turns[0]).collect::<Vec<_>>());
        }
        for (turn, node) in turns.into_iter().enumerate() {
            let report = cluster.run(failure, node).await;
            println!("{failure:?} of node {node}: {}", summary(&report));
            report.assert_nothing_failed();
            let whom = if turn == 0 { "the leader" } else { "another node" };
            record_measurement("chaos", &format!("{failure:?} of {whom}: {}", summary(&report)));
        }
    }
    // The failures had an effect: the calls did not go to healthy nodes by chance.
    let retries = cluster.daemon.metric("transit_kms_retries_total", &[]).await;
    let hedges = cluster.daemon.metric("transit_kms_hedges_total", &[("result", "won")]).await;
    println!("{retries} retries, {hedges} hedges won");
    assert!(retries >= 1.0 && hedges >= 1.0, "{retries} {hedges}");
    assert_eq!(cluster.daemon.metric("transit_kms_retry_budget_exhausted_total", &[]).await, 0.0);
}

/// Without a quorum there is no leader, so no key can be rotated and no token renewed. But a standby of OpenBao can still
/// check the token and use the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_answered_while_two_nodes_of_three_are_down() {
    let mut cluster = ClusterWithDaemon::start().await;
    for the_leader_survives in [false, true] {
        cluster.vault.wait_complete().await;
        let leader = cluster.vault.leader().await;
        let survivor = if the_leader_survives { leader } else { (leader + 1) % 3 };
        let load = Load::at_rate(&cluster.daemon, RATE);
        more_calls(&load, u64::from(RATE) / 2).await;
        let stopped = [(survivor + 1) % 3, (survivor + 2) % 3];
        for node in stopped {
            cluster.vault.members[node].stop();
        }
        let seconds = if full() { 60 } else { 4 };
        more_calls(&load, u64::from(RATE) * seconds).await;
        let report = load.stop().await;
        report.assert_nothing_failed();
        let whom = if the_leader_survives { "the leader" } else { "a standby" };
        let text = format!("two of three down, {whom} remains: {}", summary(&report));
        record_measurement("chaos", &text);
        for node in stopped {
            cluster.vault.members[node].start_again_sealed().await;
        }
        for node in stopped {
            cluster.vault.members[node].unseal_member().await;
        }
    }
}

/// A server that cannot write its audit log responds with 500 to every request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_while_the_audit_device_of_one_node_is_full() {
    let cluster = ClusterWithDaemon::of(ThreeNodeVault::with_audit_disks().await).await;
    let leader = cluster.vault.leader().await;
    for node in [leader, (leader + 1) % 3] {
        let member = &cluster.vault.members[node];
        let Some(disk) = member.audit_disk() else { return };
        let load = Load::at_rate(&cluster.daemon, RATE);
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
        record_measurement("chaos", &format!("audit device of {whom} fails: {}", summary(&report)));
    }
}

/// A summary of the load for the test output.
fn summary(report: &LoadReport) -> String {
    format!("{} calls, none failed, the longest took {:?}", report.calls, report.longest)
}
