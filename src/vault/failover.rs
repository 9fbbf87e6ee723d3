//! Which node is asked, and who is asked next: the one place that decides it.
//!
//! A call begins with the node that answered last. It goes to the next one when a node refuses,
//! breaks off, is sealed, not ready or behind, and when it has been silent for too long; an answer
//! that comes late after all still counts. For Encrypt and Decrypt "too long" is what is unusual of
//! late: the second request is a hedge, and whoever loses is cancelled. Encrypt and Decrypt may be sent twice without harm, so a
//! connection that breaks is no reason to give up either. Once no node is left, a caller's call
//! waits for one to come back, as long as its deadline and the outage's age allow.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

use super::{
    errors::{Consequence, Operation, classify, is_answer},
    pool::{Incoming, NoAnswer, Node, Outgoing, Pool},
};
use crate::{
    kms::{Fault, TransitError},
    observe::metrics::Metrics,
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
/// Why a second node is asked while the first has not answered.
const HEDGE: &str = "hedge";
/// What `/sys/health` answers for the active node.
const ACTIVE: u16 = 200;
/// What it answers for a standby and a performance standby.
const STANDBY: [u16; 2] = [429, 473];

/// What is asked, and on whose behalf.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) deadline: Instant,
    pub(super) operation: Operation,
    pub(super) outgoing: &'a Outgoing,
    /// The token was issued so recently that not every node may know it.
    pub(super) token_is_fresh: bool,
}

/// Reads what was asked for out of an answer.
pub(super) type Accept<'a, T> = &'a (dyn Fn(&Incoming) -> Result<T, TransitError> + Sync);

/// Sends a question to one node after the other until one gives an answer that `accept` understands,
/// or refuses it in words that are recognised. Whatever else comes is not an answer.
///
/// # Errors
/// What the last node said, or why it said nothing.
pub(super) async fn ask<T>(
    pool: &Pool,
    metrics: &Metrics,
    question: Question<'_>,
    accept: Accept<'_, T>,
) -> Result<T, TransitError> {
    let race = Race {
        accept,
        again: Vec::new(),
        in_flight: Vec::new(),
        lagged: false,
        last: None,
        metrics,
        pool,
        question,
    };
    race.run().await
}

/// One question and what became of it so far.
struct Race<'a, T> {
    accept: Accept<'a, T>,
    /// Nodes that get a second chance within the round, and had it.
    again: Vec<usize>,
    in_flight: Vec<InFlight>,
    /// In this round, a node did not know the key version.
    lagged: bool,
    last: Option<TransitError>,
    metrics: &'a Metrics,
    pool: &'a Pool,
    question: Question<'a>,
}

struct InFlight {
    began: Instant,
    /// It was asked only because another one takes long.
    hedge: bool,
    node: Arc<Node>,
    /// It has been silent for [`SILENCE`], and that has had its consequences.
    silent: bool,
}

/// How a round ended.
enum Round<T> {
    Answered(T),
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
    Next(&'static str),
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
        loop {
            let Some(queue) = self.queue().await else { return Err(self.late()) };
            self.lagged = false;
            self.again.clear();
            match self.round(queue).await {
                Round::Answered(answer) => return Ok(answer),
                Round::Final(error) => return Err(error),
                Round::Late => return Err(self.late()),
                Round::Failed => rounds += 1,
            }
            let waits = patient && self.pool.outage().unwrap_or_default() < YOUNG_OUTAGE;
            let pause = match &self.last {
                _ if self.lagged && rounds < LAG_ROUNDS => LAG,
                Some(error) if is_no_answer(error.fault) && waits => {
                    if self.pool.outage().is_some() {
                        // The pool knows when to go on.
                        continue;
                    }
                    PAUSE * (1 << rounds.min(5))
                }
                _ => return Err(self.late()),
            };
            let then = Instant::now() + pause;
            if then >= self.question.deadline || !self.may_ask_again("round") {
                return Err(self.late());
            }
            sleep_until(then).await;
        }
    }

    /// Whom to ask in the next round, in order; `None` if nobody is there in time.
    async fn queue(&mut self) -> Option<VecDeque<Arc<Node>>> {
        if !self.question.operation.is_a_callers() {
            return Some(self.pool.nodes().into());
        }
        loop {
            let well = self.pool.well();
            if !well.is_empty() {
                return Some(well.into());
            }
            let Some(left) = YOUNG_OUTAGE.checked_sub(self.pool.outage().unwrap_or_default()) else {
                // Old news: one try at each, and the caller hears of it.
                return Some(self.pool.nodes().into());
            };
            let until = self.question.deadline.min(Instant::now() + left);
            if self.pool.wait_for_a_node(until).await {
                self.metrics.retry("waited");
            } else if until == self.question.deadline || Instant::now() < until {
                self.last.get_or_insert_with(|| self.pool.why_away());
                return None;
            }
        }
    }

    /// Asks the nodes of `queue` until one answers, or none is left.
    async fn round(&mut self, mut queue: VecDeque<Arc<Node>>) -> Round<T> {
        let deadline = self.question.deadline;
        let mut asked = FuturesUnordered::new();
        let Some(first) = queue.pop_front() else { return Round::Failed };
        let mut patience = self.patience();
        let mut impatient = Instant::now() + patience;
        asked.push(self.begin(first, false));
        loop {
            let silent = self.in_flight.iter().filter(|it| !it.silent).map(|it| it.began + SILENCE).min();
            let more = (!queue.is_empty() && asked.len() < MOST).then_some(impatient);
            let wake = silent.into_iter().chain(more).min().unwrap_or(deadline).min(deadline);
            let reason = tokio::select! {
                biased;
                Some(ended) = asked.next() => match self.judge(ended, &mut queue) {
                    Verdict::Answered(answer) => return Round::Answered(answer),
                    Verdict::Final(error) => return Round::Final(error),
                    Verdict::Late => return Round::Late,
                    Verdict::Next(reason) => reason,
                },
                () = sleep_until(wake) => {
                    let now = Instant::now();
                    if now >= deadline {
                        return Round::Late;
                    }
                    self.note_silence(now, &mut queue);
                    if now < impatient || asked.len() >= MOST {
                        continue;
                    }
                    if self.in_flight.iter().any(|it| it.silent) { "silent" } else { HEDGE }
                }
            };
            match queue.pop_front() {
                Some(next) if self.may_ask_again(reason) => {
                    patience = (patience * 2).min(SILENCE);
                    impatient = Instant::now() + patience;
                    asked.push(self.begin(next, reason == HEDGE));
                }
                Some(_) => queue.clear(),
                None => {}
            }
            if asked.is_empty() {
                return Round::Failed;
            }
        }
    }

    /// After how long a second node is asked as well.
    fn patience(&self) -> Duration {
        if self.question.operation.is_a_callers() { self.pool.hedge.delay() } else { SILENCE }
    }

    fn begin(&mut self, node: Arc<Node>, hedge: bool) -> impl Future<Output = Ended> + use<'a, T> {
        let began = Instant::now();
        self.in_flight.push(InFlight { began, hedge, node: Arc::clone(&node), silent: false });
        exchange(node, began, self.question.outgoing, self.question.deadline)
    }

    fn may_ask_again(&self, reason: &'static str) -> bool {
        let may = self.pool.budget.take();
        if may {
            // Whether it was worth it, shows at the end.
            if reason != HEDGE {
                self.metrics.retry(reason);
            }
        } else {
            self.metrics.retries_denied.inc();
        }
        may
    }

    /// Nodes that are silent are ill, if there are others. The only one gets another chance, on
    /// another connection: it may be that one that is dead.
    fn note_silence(&mut self, now: Instant, queue: &mut VecDeque<Arc<Node>>) {
        let others = self.pool.well().len();
        for it in self.in_flight.iter_mut().filter(|it| !it.silent && now >= it.began + SILENCE) {
            it.silent = true;
            let message = format!("Vault at {} has been silent for {} s", it.node.name, SILENCE.as_secs());
            let error = TransitError::new(Fault::Unreachable, message);
            if others > 1 {
                self.pool.failed(&it.node, &error, None);
            }
            if queue.is_empty() && !self.again.contains(&it.node.id) {
                self.again.push(it.node.id);
                queue.push_back(Arc::clone(&it.node));
            }
        }
    }

    fn judge(&mut self, ended: Ended, queue: &mut VecDeque<Arc<Node>>) -> Verdict<T> {
        let Question { operation, outgoing, token_is_fresh, .. } = self.question;
        let Ended { node, began, outcome } = ended;
        let index = self.in_flight.iter().position(|it| it.node.id == node.id && it.began == began);
        let hedge = index.is_some_and(|index| self.in_flight.swap_remove(index).hedge);
        let record = |outcome: &'static str| {
            self.metrics.vault_call(operation.name(), outcome, began.elapsed());
            self.metrics.vault_node_call(&node.name, outcome);
        };
        let (reason, error) = match outcome {
            Ok(incoming) if is_answer(incoming.status, &incoming.body) => {
                let answer = match (self.accept)(&incoming) {
                    Ok(answer) => answer,
                    Err(error) => {
                        record(error.fault.name());
                        self.pool.failed(&node, &error, None);
                        return self.next("unreachable", error, hedge);
                    }
                };
                self.pool.answered(&node);
                record("ok");
                if hedge {
                    self.metrics.hedge("won");
                }
                if operation.is_a_callers() {
                    self.pool.hedge.note(began.elapsed());
                    self.in_flight.iter().for_each(|it| self.pool.hedge.note(it.began.elapsed()));
                }
                return Verdict::Answered(answer);
            }
            Ok(incoming) => {
                let refusal = classify(operation, &outgoing.path, incoming.status, &incoming.body);
                let error = refusal.error;
                record(error.fault.name());
                match refusal.consequence {
                    Consequence::Final if error.fault == Fault::TokenDead && token_is_fresh => {
                        ("fresh_token", error)
                    }
                    Consequence::Final => return Verdict::Final(error),
                    Consequence::Next if error.fault == Fault::Lagging => {
                        self.lagged = true;
                        ("lagging", error)
                    }
                    Consequence::Next => ("unreachable", error),
                    Consequence::Eject => {
                        self.pool.failed(&node, &error, incoming.retry_after);
                        ("unreachable", error)
                    }
                }
            }
            Err(NoAnswer::Final(error)) => {
                record(error.fault.name());
                return if error.fault == Fault::DeadlineExceeded {
                    Verdict::Late
                } else {
                    Verdict::Final(error)
                };
            }
            Err(NoAnswer::Broken(error)) => {
                record(error.fault.name());
                // A kept connection may be closed under our hands: that alone is worth another try.
                if self.again.contains(&node.id) {
                    self.pool.failed(&node, &error, None);
                } else {
                    self.again.push(node.id);
                    queue.push_back(Arc::clone(&node));
                }
                ("broken", error)
            }
            Err(NoAnswer::Connect(error)) => {
                record(error.fault.name());
                self.pool.failed(&node, &error, None);
                ("connect", error)
            }
        };
        self.next(reason, error, hedge)
    }

    fn next(&mut self, reason: &'static str, error: TransitError, hedge: bool) -> Verdict<T> {
        if hedge {
            self.metrics.hedge("lost");
        }
        // A node that lags, or does not know the token, says more than one that does not answer.
        if !is_no_answer(error.fault) || self.last.as_ref().is_none_or(|last| is_no_answer(last.fault)) {
            self.last = Some(error);
        }
        Verdict::Next(reason)
    }

    /// The last real reason, if there is one.
    fn late(&mut self) -> TransitError {
        self.last.take().unwrap_or_else(|| {
            let names: Vec<_> = self.in_flight.iter().map(|it| it.node.name.as_str()).collect();
            let message = format!("Vault at {} did not answer in time", names.join(", "));
            TransitError::new(Fault::DeadlineExceeded, message)
        })
    }
}

impl<T> Drop for Race<'_, T> {
    /// Whoever is still asked has lost, or nobody listens any more.
    fn drop(&mut self) {
        for it in &self.in_flight {
            if it.hedge {
                self.metrics.hedge("lost");
            }
            self.metrics.vault_call(self.question.operation.name(), "cancelled", it.began.elapsed());
            self.metrics.vault_node_call(&it.node.name, "cancelled");
        }
    }
}

/// Whether it says only that a node could not be asked, or did not answer as Vault does.
fn is_no_answer(fault: Fault) -> bool {
    matches!(fault, Fault::Nonsense | Fault::Unreachable)
}

/// Whether the node that is asked first is the active one of its cluster.
///
/// If it is not, and another one is, that one is asked first from now on: whoever wants to
/// know is to look again, there.
///
/// # Errors
/// If no node says whether it is active or a standby.
pub(super) async fn first_is_active(
    pool: &Pool,
    metrics: &Metrics,
    outgoing: &Outgoing,
    deadline: Instant,
) -> Result<bool, TransitError> {
    let operation = Operation::Health;
    let mut outcome = Err(TransitError::new(Fault::Nonsense, "no address is configured"));
    for (index, node) in pool.nodes().into_iter().enumerate() {
        let began = Instant::now();
        let record = |outcome: &'static str| {
            metrics.vault_call(operation.name(), outcome, began.elapsed());
            metrics.vault_node_call(&node.name, outcome);
        };
        match node.exchange(outgoing, deadline.min(began + SILENCE)).await {
            Ok(incoming) if incoming.status == ACTIVE => {
                record("ok");
                pool.prefer(&node);
                return Ok(index == 0);
            }
            Ok(incoming) if STANDBY.contains(&incoming.status) => {
                record("ok");
                outcome = Ok(false);
            }
            Ok(incoming) => {
                let error = classify(operation, &outgoing.path, incoming.status, &incoming.body).error;
                record(error.fault.name());
                outcome = outcome.or(Err(error));
            }
            Err(NoAnswer::Broken(error) | NoAnswer::Connect(error) | NoAnswer::Final(error)) => {
                record(error.fault.name());
                outcome = outcome.or(Err(error));
            }
        }
    }
    outcome
}

#[cfg(test)]
mod tests;
