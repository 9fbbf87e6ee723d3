//! Which node is asked, and which is asked next. This is the only place that decides it.
//!
//! A call begins with the node that answered last. It goes on to the next one when a node refuses the
//! connection, breaks off, is sealed, not ready or behind, answers with what is not Vault's, or has been
//! silent for a second. An answer that comes late still counts. For Encrypt and Decrypt a second node is
//! asked earlier, when the first takes unusually long: that request is a hedge, and the slower of the two
//! is cancelled. Encrypt and Decrypt may be sent twice without harm, so a connection that breaks is no
//! reason to give up. When no node is left, a call waits for one to come back, within its deadline and
//! while the outage is young.
//!
//! An answer ends the call only if it is understood, and a refusal only if it is recognised and comes from
//! a node that has worked for the session. Each request after the first is paid for from a budget.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

use super::{
    acceptance::{Acceptance, Weight},
    classify::{Consequence, Operation, Refusal, classify, is_answer, is_ready},
};
use crate::{
    ErrorKind, TransitError,
    metrics::{ClientMetrics, HedgeResult, RequestOutcome, RetryReason},
    vault::{
        pool::{Incoming, NoAnswer, Node, Outgoing, Pool},
        session::RequestObserver,
    },
};

/// A standby was seen to lag for 56 to 98 ms after a rotation.
const LAG: Duration = Duration::from_millis(100);
/// So often every node is asked at most while all that answer lag.
const LAG_ROUNDS: u32 = 3;
/// A node that says nothing for so long is taken for ill, and another one is asked.
const SILENCE: Duration = Duration::from_secs(1);
/// Before nodes that are well and yet failed a call are asked once more by it; it doubles.
const PAUSE: Duration = Duration::from_millis(100);
/// What a successor may need to come: an outage that is older is not waited out by calls.
const YOUNG_OUTAGE: Duration = Duration::from_secs(10);
/// Requests in flight for one call.
const MOST: usize = 3;
/// What `/sys/health` answers for the active node.
const ACTIVE: u16 = 200;

/// What is asked, and on whose behalf.
#[derive(Clone, Copy)]
pub(crate) struct Question<'a> {
    pub(crate) acceptance: &'a Acceptance,
    pub(crate) deadline: Instant,
    pub(crate) operation: Operation,
    pub(crate) outgoing: &'a Outgoing,
    /// Is told why a node did not answer, while others are still asked.
    pub(crate) progress: Option<&'a dyn RequestObserver>,
    /// What comes of it may change the health of nodes, and who is asked first.
    pub(crate) speaks_for_nodes: bool,
    /// The token was issued so recently that not every node may know it.
    pub(crate) token_is_fresh: bool,
}

/// Reads what was asked for out of an answer.
pub(crate) type Accept<'a, T> = &'a (dyn Fn(&Incoming) -> Result<T, TransitError> + Sync);

/// Sends a question to one node after the other until one gives an answer that `accept` understands,
/// or refuses it in words that are recognised. Whatever else comes is not an answer.
///
/// # Errors
/// What the last node said, or why it said nothing.
pub(crate) async fn ask<T>(
    pool: &Pool,
    metrics: &ClientMetrics,
    question: Question<'_>,
    accept: Accept<'_, T>,
) -> Result<T, TransitError> {
    let race = Race {
        accept,
        again: Vec::new(),
        doubted: false,
        in_flight: Vec::new(),
        lagged: false,
        last: None,
        metrics,
        pool,
        question,
        sent: false,
    };
    race.run().await
}

/// One question and what became of it so far.
struct Race<'a, T> {
    accept: Accept<'a, T>,
    /// Nodes that get a second chance within the round, and had it.
    again: Vec<usize>,
    /// A node has said that the key is not there; one more must say so.
    doubted: bool,
    in_flight: Vec<InFlight>,
    /// In this round, a node did not know the key version.
    lagged: bool,
    last: Option<TransitError>,
    metrics: &'a ClientMetrics,
    pool: &'a Pool,
    question: Question<'a>,
    /// A request has been sent: each further one is extra, and paid for.
    sent: bool,
}

struct InFlight {
    began: Instant,
    /// It was asked only because another one takes long.
    hedge: bool,
    node: Arc<Node>,
    /// It has been silent for [`SILENCE`], and that has had its consequences.
    silent: bool,
    /// It has the trial of its node.
    trial: bool,
}

/// Why a node is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Purpose {
    /// The first node takes unusually long.
    Hedge,
    /// It is the first request of the call, or the one before failed.
    Try(RetryReason),
}

/// How a round ended.
enum Round<T> {
    Answered(T),
    /// Another call has the trial of the only node that is ready.
    Busy,
    /// The budget does not allow a further request.
    Denied,
    Failed,
    Final(TransitError),
    Late,
}

/// What follows from an answer, or from none.
enum Verdict<T> {
    Answered(T),
    Final(TransitError),
    Late,
    /// Another node is to be asked, for this reason.
    Next(RetryReason),
    /// The request in flight to this node decides.
    Wait,
}

/// Whether a request may be sent.
enum Admission<F> {
    Busy,
    Denied,
    Sent(F),
}

struct Ended {
    node: Arc<Node>,
    began: Instant,
    outcome: Result<Incoming, NoAnswer>,
}

async fn exchange(node: Arc<Node>, began: Instant, outgoing: &Outgoing, deadline: Instant) -> Ended {
    let outcome = node.exchange(outgoing, deadline).await;
    Ended { node, began, outcome }
}

impl<'a, T> Race<'a, T> {
    async fn run(mut self) -> Result<T, TransitError> {
        let patient = self.question.operation.is_a_callers();
        let mut rounds = 0;
        let mut reason = RetryReason::Waited;
        loop {
            let Some(queue) = self.queue(rounds).await else { return Err(self.late()) };
            self.lagged = false;
            self.again.clear();
            match self.round(queue, reason).await {
                Round::Answered(answer) => return Ok(answer),
                Round::Busy => continue,
                Round::Final(error) => return Err(error),
                Round::Denied | Round::Late => return Err(self.late()),
                Round::Failed => rounds += 1,
            }
            let waits = patient && self.pool.outage().unwrap_or_default() < YOUNG_OUTAGE;
            let pause = match &self.last {
                _ if self.lagged && rounds < LAG_ROUNDS => LAG,
                Some(error) if is_no_answer(error.kind) && waits => {
                    if self.pool.outage().is_some() {
                        // The pool knows when to go on.
                        reason = RetryReason::Waited;
                        continue;
                    }
                    PAUSE * (1 << rounds.min(5))
                }
                _ => return Err(self.late()),
            };
            let then = Instant::now() + pause;
            if then >= self.question.deadline {
                return Err(self.late());
            }
            reason = RetryReason::Round;
            sleep_until(then).await;
        }
    }

    /// Which nodes to ask in the next round, after so many; `None` if no node is ready in time.
    async fn queue(&mut self, rounds: u32) -> Option<VecDeque<Arc<Node>>> {
        if !self.question.operation.is_a_callers() {
            return Some(self.pool.nodes().into());
        }
        loop {
            let ready = self.pool.ready();
            if !ready.is_empty() {
                // Where all that are ready have failed, one that was ejected may do it by now.
                return Some(if rounds > 0 { self.pool.nodes() } else { ready }.into());
            }
            let left = match YOUNG_OUTAGE.checked_sub(self.pool.outage().unwrap_or_default()) {
                Some(left) => left,
                // However old the outage: it may be about to end.
                None if self.pool.has_trial() => YOUNG_OUTAGE,
                // Old news: one try at each, and the caller hears of it.
                None => return Some(self.pool.nodes().into()),
            };
            let until = self.question.deadline.min(Instant::now() + left);
            if !self.pool.wait_for_a_node(until).await
                && (until == self.question.deadline || Instant::now() < until)
            {
                self.last.get_or_insert_with(|| self.pool.why_away());
                return None;
            }
        }
    }

    /// Asks the nodes of `queue` until one answers, or none is left. `reason` is why the first is asked, if
    /// others were before.
    async fn round(&mut self, mut queue: VecDeque<Arc<Node>>, reason: RetryReason) -> Round<T> {
        let deadline = self.question.deadline;
        let mut asked = FuturesUnordered::new();
        let mut patience = self.patience();
        let mut impatient = Instant::now() + patience;
        let mut next = Some(Purpose::Try(reason));
        loop {
            if let Some(purpose) = next.take() {
                while let Some(node) = queue.pop_front() {
                    match self.send(&node, purpose) {
                        Admission::Sent(exchange) => {
                            impatient = Instant::now() + patience;
                            asked.push(exchange);
                            break;
                        }
                        Admission::Busy if queue.is_empty() && asked.is_empty() => return Round::Busy,
                        Admission::Busy => {}
                        // The first may still fail, and then another one is asked from the other budget.
                        Admission::Denied if purpose == Purpose::Hedge => {
                            queue.push_front(node);
                            impatient = self.first_silence().unwrap_or(deadline);
                            break;
                        }
                        Admission::Denied if asked.is_empty() => return Round::Denied,
                        Admission::Denied => queue.clear(),
                    }
                }
                if asked.is_empty() {
                    return Round::Failed;
                }
            }
            let more = (!queue.is_empty() && asked.len() < MOST).then_some(impatient);
            let wake = self.first_silence().into_iter().chain(more).min().unwrap_or(deadline).min(deadline);
            next = tokio::select! {
                biased;
                Some(ended) = asked.next() => match self.judge(ended, &mut queue) {
                    Verdict::Answered(answer) => return Round::Answered(answer),
                    Verdict::Final(error) => return Round::Final(error),
                    Verdict::Late => return Round::Late,
                    Verdict::Next(reason) => Some(Purpose::Try(reason)),
                    Verdict::Wait => None,
                },
                () = sleep_until(wake) => {
                    let now = Instant::now();
                    if now >= deadline {
                        return Round::Late;
                    }
                    self.note_silence(now, &mut queue);
                    let silent = self.in_flight.iter().any(|it| it.silent);
                    if now < impatient || asked.len() >= MOST {
                        None
                    } else if !silent && self.pool.hedge.is_paused() {
                        impatient = self.first_silence().unwrap_or(deadline);
                        None
                    } else {
                        patience = (patience * 2).min(SILENCE);
                        Some(if silent { Purpose::Try(RetryReason::Silent) } else { Purpose::Hedge })
                    }
                }
            };
        }
    }

    /// When the next node is taken for silent.
    fn first_silence(&self) -> Option<Instant> {
        self.in_flight.iter().filter(|it| !it.silent).map(|it| it.began + SILENCE).min()
    }

    /// How long the first node may take before a second one is asked as well. Only calls of a session in use
    /// are hedged: their budget is not there for candidates.
    fn patience(&self) -> Duration {
        let Question { operation, speaks_for_nodes, .. } = self.question;
        if operation.is_a_callers() && speaks_for_nodes { self.pool.hedge.delay() } else { SILENCE }
    }

    /// The one place where requests are sent, and so the one where extra ones are paid for.
    fn send(
        &mut self,
        node: &Arc<Node>,
        purpose: Purpose,
    ) -> Admission<impl Future<Output = Ended> + use<'a, T>> {
        let Question { operation, outgoing, deadline, speaks_for_nodes, .. } = self.question;
        let trial = speaks_for_nodes && operation.is_a_callers() && node.is_on_trial();
        if trial && !node.take_trial() {
            return Admission::Busy;
        }
        let hedge = purpose == Purpose::Hedge && self.sent;
        if self.sent && !self.pay(purpose) {
            if trial {
                node.return_trial();
            }
            return Admission::Denied;
        }
        self.sent = true;
        let began = Instant::now();
        self.in_flight.push(InFlight { began, hedge, node: Arc::clone(node), silent: false, trial });
        Admission::Sent(exchange(Arc::clone(node), began, outgoing, deadline))
    }

    fn pay(&self, purpose: Purpose) -> bool {
        let reason = match purpose {
            Purpose::Hedge => {
                // Whether it was worth it, shows at the end.
                let paid = self.pool.hedge.may_be_made();
                if !paid {
                    self.metrics.hedge(HedgeResult::Denied);
                }
                return paid;
            }
            Purpose::Try(reason) => reason,
        };
        let budget = if self.question.speaks_for_nodes { &self.pool.budget } else { &self.pool.background };
        let paid = budget.take();
        if paid {
            self.metrics.retry(reason);
        } else {
            self.metrics.retry_budget_exhausted.inc();
        }
        paid
    }

    /// It failed, which may say something about the node.
    fn failed(&self, node: &Node, error: &TransitError, pause: Option<Duration>) {
        if self.question.speaks_for_nodes {
            self.pool.failed(node, error, pause);
        }
    }

    /// Nodes that are silent are ill, if there are others. If no further one is ready, those that were
    /// ejected get a chance: they may be back. So does the silent one, on another connection: it may be
    /// the connection that is dead.
    fn note_silence(&mut self, now: Instant, queue: &mut VecDeque<Arc<Node>>) {
        let mut ill = Vec::new();
        for it in self.in_flight.iter_mut().filter(|it| !it.silent && now >= it.began + SILENCE) {
            it.silent = true;
            ill.push((Arc::clone(&it.node), it.trial));
        }
        if queue.is_empty() && !ill.is_empty() {
            let is_silent = |id: usize| self.in_flight.iter().any(|it| it.node.id == id);
            let mut nodes = self.pool.nodes();
            // Stable: the order within the two stays.
            nodes.sort_by_key(|node| is_silent(node.id));
            nodes.retain(|node| !self.again.contains(&node.id));
            self.again.extend(nodes.iter().map(|node| node.id));
            queue.extend(nodes);
        }
        for (node, trial) in ill {
            // Counted for each: the second may be the last that is well, because the first was ejected.
            let others = self.pool.members().iter().any(|(id, well)| *well && *id != node.id);
            let message = format!(
                "Vault at {} has been silent for {} s: is it overloaded or frozen?",
                node.name,
                SILENCE.as_secs()
            );
            let error = TransitError::new(ErrorKind::Unreachable, message);
            tell(self.question.progress, &error);
            if others || trial {
                self.failed(&node, &error, None);
            }
        }
    }

    fn judge(&mut self, ended: Ended, queue: &mut VecDeque<Arc<Node>>) -> Verdict<T> {
        let index =
            self.in_flight.iter().position(|it| it.node.id == ended.node.id && it.began == ended.began);
        let asked = index.map(|index| self.in_flight.swap_remove(index));
        let node = Arc::clone(&ended.node);
        let hedge = asked.as_ref().is_some_and(|asked| asked.hedge);
        let verdict = self.weigh(ended, hedge, queue);
        if hedge && !matches!(verdict, Verdict::Answered(_)) {
            self.hedge_lost();
        }
        if asked.is_some_and(|asked| asked.trial) {
            // Without an outcome that speaks for the node or against it, the next call tries.
            node.return_trial();
        }
        verdict
    }

    fn weigh(&mut self, ended: Ended, hedge: bool, queue: &mut VecDeque<Arc<Node>>) -> Verdict<T> {
        let Question { acceptance, operation, outgoing, speaks_for_nodes, .. } = self.question;
        let Ended { node, began, outcome } = ended;
        let record = |outcome: RequestOutcome| {
            self.metrics.request(&node.name, operation, outcome, began.elapsed());
        };
        match outcome {
            Ok(incoming) if is_answer(incoming.status, &incoming.body) => match (self.accept)(&incoming) {
                Ok(answer) => {
                    record(RequestOutcome::Ok);
                    acceptance.by(node.id);
                    if speaks_for_nodes {
                        self.pool.answered(&node);
                        if operation.is_a_callers() {
                            self.pool.hedge.note(began.elapsed());
                            self.in_flight.iter().for_each(|it| self.pool.hedge.note(it.began.elapsed()));
                        }
                    }
                    if hedge {
                        self.pool.hedge.won();
                        self.metrics.hedge(HedgeResult::Won);
                    }
                    Verdict::Answered(answer)
                }
                Err(error) => {
                    record(RequestOutcome::Failed(error.kind));
                    self.failed(&node, &error, None);
                    self.next(RetryReason::Unreachable, error)
                }
            },
            Ok(incoming) => {
                let Refusal { consequence, error } =
                    classify(operation, outgoing.place(), incoming.status, &incoming.body);
                record(RequestOutcome::Failed(error.kind));
                if consequence == Consequence::Eject {
                    self.failed(&node, &error, incoming.retry_after);
                    return self.next(RetryReason::Unreachable, error);
                }
                if speaks_for_nodes {
                    // It answers as Vault does. Who is asked first stays: only good answers change that.
                    node.answered();
                }
                match consequence {
                    Consequence::Final => self.refused(&node, error, queue),
                    Consequence::Eject | Consequence::Next if error.kind == ErrorKind::VersionUnavailable => {
                        self.lagged = true;
                        self.next(RetryReason::VersionUnavailable, error)
                    }
                    Consequence::Eject | Consequence::Next => self.next(RetryReason::Unreachable, error),
                }
            }
            Err(NoAnswer::Final(error)) => {
                record(RequestOutcome::Failed(error.kind));
                if error.kind == ErrorKind::DeadlineExceeded { Verdict::Late } else { Verdict::Final(error) }
            }
            Err(NoAnswer::Unreadable(error)) => {
                record(RequestOutcome::Failed(error.kind));
                self.failed(&node, &error, None);
                self.next(RetryReason::Unreachable, error)
            }
            Err(NoAnswer::Broken(error)) => {
                record(RequestOutcome::Failed(error.kind));
                // A kept connection may be closed under our hands: that alone is worth another try.
                if self.again.contains(&node.id) {
                    self.failed(&node, &error, None);
                } else {
                    self.again.push(node.id);
                    queue.push_back(Arc::clone(&node));
                }
                self.next(RetryReason::Broken, error)
            }
            Err(NoAnswer::Connect(error)) => {
                record(RequestOutcome::Failed(error.kind));
                self.failed(&node, &error, None);
                self.next(RetryReason::Connect, error)
            }
        }
    }

    /// A node refuses in words that are recognised. What it says of token, policy and key counts only from
    /// a node that has worked for the session, because others may be of another cluster.
    fn refused(
        &mut self,
        node: &Arc<Node>,
        error: TransitError,
        queue: &mut VecDeque<Arc<Node>>,
    ) -> Verdict<T> {
        let Question { acceptance, operation, token_is_fresh, .. } = self.question;
        if !matches!(error.kind, ErrorKind::Denied | ErrorKind::KeyNotFound | ErrorKind::TokenInvalid) {
            return Verdict::Final(error);
        }
        match acceptance.weigh(node.id, &self.pool.members()) {
            Weight::Counts if error.kind == ErrorKind::TokenInvalid && token_is_fresh => {
                self.next(RetryReason::FreshToken, error)
            }
            // A mount or namespace is not there for a moment while a node starts, and to declare a key
            // lost stops the writes of the API server.
            Weight::Counts
                if error.kind == ErrorKind::KeyNotFound
                    && operation == Operation::ReadKey
                    && !std::mem::replace(&mut self.doubted, true) =>
            {
                self.lagged = true;
                self.next(RetryReason::Unconfirmed, error)
            }
            Weight::Counts => Verdict::Final(error),
            Weight::AskNode(other) => {
                let unconfirmed = unconfirmed(node, &error);
                if self.in_flight.iter().any(|it| it.node.id == other) {
                    self.last = Some(unconfirmed);
                    return Verdict::Wait;
                }
                queue.retain(|it| it.id != other);
                if let Some(other) = self.pool.nodes().into_iter().find(|it| it.id == other) {
                    queue.push_front(other);
                }
                self.next(RetryReason::Unconfirmed, unconfirmed)
            }
            Weight::Unconfirmed => self.next(RetryReason::Unconfirmed, unconfirmed(node, &error)),
        }
    }

    fn next(&mut self, reason: RetryReason, error: TransitError) -> Verdict<T> {
        tell(self.question.progress, &error);
        // A node that lags, or does not know the token, says more than one that does not answer.
        if !is_no_answer(error.kind) || self.last.as_ref().is_none_or(|last| is_no_answer(last.kind)) {
            self.last = Some(error);
        }
        Verdict::Next(reason)
    }

    fn hedge_lost(&self) {
        self.pool.hedge.lost();
        self.metrics.hedge(HedgeResult::Lost);
    }

    /// The last real reason, if there is one.
    fn late(&mut self) -> TransitError {
        self.last.take().unwrap_or_else(|| {
            let names: Vec<_> = self.in_flight.iter().map(|it| it.node.name.as_str()).collect();
            let message =
                format!("Vault at {} did not answer in time: is it overloaded or frozen?", names.join(", "));
            TransitError::new(ErrorKind::DeadlineExceeded, message)
        })
    }
}

impl<T> Drop for Race<'_, T> {
    /// Whoever is still asked has lost, or nobody listens any more.
    fn drop(&mut self) {
        for it in &self.in_flight {
            if it.hedge {
                self.hedge_lost();
            }
            if it.trial {
                it.node.return_trial();
            }
            let operation = self.question.operation;
            self.metrics.request(&it.node.name, operation, RequestOutcome::Cancelled, it.began.elapsed());
        }
    }
}

/// What a refusal is that no node confirms: a node that could not do it.
fn unconfirmed(node: &Node, error: &TransitError) -> TransitError {
    TransitError::new(
        ErrorKind::Unreachable,
        format!(
            "Vault at {} refuses what another address accepts: is it of another cluster, or not yet up to date? \
             It says: {error}",
            node.name
        ),
    )
}

/// Whether it says only that a node could not be asked, or did not answer as Vault does.
fn is_no_answer(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::InvalidResponse | ErrorKind::Unreachable)
}

fn tell(progress: Option<&dyn RequestObserver>, error: &TransitError) {
    if let Some(progress) = progress {
        progress.node_failed(error);
    }
}

/// Whether the node with the id `node` is the active one of its cluster.
///
/// If it is not, and another one is, that one is asked first from now on, if `prefer` allows it: to look
/// again is to look there.
///
/// # Errors
/// If no node says whether it is active or a standby.
pub(crate) async fn is_active(
    pool: &Pool,
    metrics: &ClientMetrics,
    outgoing: &Outgoing,
    node: usize,
    prefer: bool,
    deadline: Instant,
) -> Result<bool, TransitError> {
    let operation = Operation::Health;
    let mut outcome = Err(TransitError::new(ErrorKind::InvalidResponse, "no address is configured"));
    let mut nodes = pool.nodes();
    // Stable, so that the others keep their order.
    nodes.sort_by_key(|it| it.id != node);
    for it in nodes {
        let began = Instant::now();
        let record = |outcome: RequestOutcome| metrics.request(&it.name, operation, outcome, began.elapsed());
        match it.exchange(outgoing, deadline.min(began + SILENCE)).await {
            Ok(incoming) if is_ready(incoming.status, &incoming.body) => {
                record(RequestOutcome::Ok);
                if incoming.status == ACTIVE {
                    if prefer {
                        pool.prefer(&it);
                    }
                    return Ok(it.id == node);
                }
                outcome = Ok(false);
            }
            Ok(incoming) => {
                let error = classify(operation, outgoing.place(), incoming.status, &incoming.body).error;
                record(RequestOutcome::Failed(error.kind));
                outcome = outcome.or(Err(error));
            }
            Err(
                NoAnswer::Broken(error)
                | NoAnswer::Connect(error)
                | NoAnswer::Final(error)
                | NoAnswer::Unreadable(error),
            ) => {
                record(RequestOutcome::Failed(error.kind));
                outcome = outcome.or(Err(error));
            }
        }
    }
    outcome
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
