//! The attempts of one request: which node is asked, which is asked next, and when that ends. This is the only
//! place that decides it.
//!
//! The node that answered last is asked first. The next one is asked when a node refuses the connection,
//! breaks it, is sealed, not ready or behind, when something other than Vault answers, or when the node has
//! been silent for a second. An answer that comes late still counts. For Encrypt and Decrypt, a second node is
//! asked earlier if the first takes unusually long: that request is a hedge, and the slower of the two is
//! cancelled. Encrypt and Decrypt may be sent twice without harm, so a broken connection is a reason to try
//! again. When no node is left, a call waits for one to recover, within its deadline and while the outage is
//! short.
//!
//! A request that works only once is not sent again after Vault may have processed it: see [`Replay::IfUnsent`].
//!
//! An answer ends the call only if it is understood. A refusal ends it only if it is recognised, and comes
//! from a node that has worked for the session. Each request after the first is paid for from a budget.

mod apply;
mod outcome;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

use self::outcome::ExchangeOutcome;
use super::{Acceptance, replay::Replay};
use crate::{
    ErrorKind, TransitError,
    metrics::{ClientMetrics, HedgeResult, RequestOutcome, RetryReason},
    operation::VaultOperation,
    vault::{
        exchange::{ExchangeError, HttpRequest, HttpResponse},
        node::Node,
        pool::Pool,
        requester::RequestObserver,
    },
};

/// The pause before nodes that lag behind are asked again. Standbys were observed to know a new key version
/// 56 to 98 ms after its rotation.
const REPLICATION_LAG: Duration = Duration::from_millis(100);
/// The most rounds of a call in which nodes lag behind.
const MAX_LAG_ROUNDS: u32 = 3;
/// A node that has not answered for this long is taken for failed, and another one is asked.
pub(super) const SILENCE_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause before healthy nodes that could not serve a call are asked again. It doubles with each round, up
/// to 32 times.
const FIRST_ROUND_PAUSE: Duration = Duration::from_millis(100);
/// Calls wait for the end of an outage that is younger. A new leader needs less than this; in a longer outage,
/// callers are better served by an error.
const MAX_OUTAGE_TO_WAIT: Duration = Duration::from_secs(10);

/// What is asked, and what is known about who asks.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) acceptance: &'a Acceptance,
    /// Whether the outcome changes the health of nodes, and which one is asked first.
    pub(crate) affects_node_health: bool,
    pub(crate) deadline: Instant,
    pub(crate) http: &'a HttpRequest,
    /// Learns why a node did not answer, while others are still asked.
    pub(crate) observer: Option<&'a dyn RequestObserver>,
    pub(crate) operation: VaultOperation,
    /// Whether it may be sent again.
    pub(crate) replay: Replay,
    /// The token was issued so recently that some nodes may not know it yet.
    pub(crate) token_is_fresh: bool,
}

/// Reads what was asked for from a successful response.
pub(crate) type Parse<'a, T> = &'a (dyn Fn(&HttpResponse) -> Result<T, TransitError> + Sync);

/// Sends a request to one node after the other, until one gives an answer that `parse` understands, or refuses
/// it in words that are recognised. Any other answer counts as none.
///
/// # Errors
/// The refusal, or why the last node gave no answer.
pub(crate) async fn send<T>(
    pool: &Pool,
    metrics: &ClientMetrics,
    request: Request<'_>,
    parse: Parse<'_, T>,
) -> Result<T, TransitError> {
    let attempts = Attempts {
        in_flight: Vec::new(),
        key_was_missing: false,
        last_error: None,
        metrics,
        nodes_lag: false,
        parse,
        pool,
        repeated: Vec::new(),
        request,
        sent_one: false,
    };
    attempts.run().await
}

/// One request, and its attempts so far.
struct Attempts<'a, T> {
    in_flight: Vec<Attempt>,
    /// A node has said that the key does not exist. Another answer must confirm it.
    key_was_missing: bool,
    last_error: Option<TransitError>,
    metrics: &'a ClientMetrics,
    /// A node lagged behind in this round.
    nodes_lag: bool,
    parse: Parse<'a, T>,
    pool: &'a Pool,
    /// The ids of the nodes that are asked a second time in this round. None is asked a third time.
    repeated: Vec<usize>,
    request: Request<'a>,
    /// A request was sent. Each further one is extra, and paid for.
    sent_one: bool,
}

/// One request in flight to one node.
struct Attempt {
    has_trial: bool,
    is_hedge: bool,
    /// It has taken longer than [`SILENCE_TIMEOUT`], and the consequences were drawn.
    is_silent: bool,
    node: Arc<Node>,
    started: Instant,
}

/// An attempt that has ended.
struct Ended {
    exchanged: Result<HttpResponse, ExchangeError>,
    node: Arc<Node>,
    started: Instant,
}

/// Why a node is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Purpose {
    /// The first node takes unusually long.
    Hedge,
    /// It is the first request of the call, or the attempt before failed.
    Try(RetryReason),
}

/// How a round, which asks each node once, ended.
enum Round<T> {
    Answered(T),
    /// The budget does not allow another request.
    BudgetExhausted,
    DeadlineExceeded,
    /// No node is left.
    Failed,
    /// The call ends with this error.
    Refused(TransitError),
    /// The only ready node is on trial, and another call has the trial.
    TrialTaken,
}

/// What follows from an attempt that has ended.
enum NextStep<T> {
    Answer(T),
    /// Ask another node.
    AskAnother(RetryReason),
    DeadlineExceeded,
    /// End the call with this error.
    Refuse(TransitError),
    /// Wait for a request in flight: the answer of that node decides.
    Wait,
}

/// Whether a request was sent.
enum Dispatch<F> {
    BudgetExhausted,
    Sent(F),
    /// The node is on trial, and another call has the trial.
    TrialTaken,
}

async fn exchange(node: Arc<Node>, started: Instant, http: &HttpRequest, deadline: Instant) -> Ended {
    let exchanged = node.exchange(http, deadline).await;
    Ended { exchanged, node, started }
}

impl<'a, T> Attempts<'a, T> {
    async fn run(mut self) -> Result<T, TransitError> {
        let mut rounds = 0;
        let mut reason = RetryReason::Waited;
        loop {
            let Some(queue) = self.queue(rounds).await else { return Err(self.final_error()) };
            self.nodes_lag = false;
            self.repeated.clear();
            match self.round(queue, reason).await {
                Round::Answered(answer) => return Ok(answer),
                Round::Refused(error) => return Err(error),
                Round::BudgetExhausted | Round::DeadlineExceeded => return Err(self.final_error()),
                Round::TrialTaken => continue,
                Round::Failed => rounds += 1,
            }
            let outage = self.pool.outage();
            let may_wait =
                self.request.operation.is_call() && outage.unwrap_or_default() < MAX_OUTAGE_TO_WAIT;
            let pause = match &self.last_error {
                _ if self.nodes_lag && rounds < MAX_LAG_ROUNDS => REPLICATION_LAG,
                Some(error) if is_no_answer(error.kind) && may_wait => {
                    if outage.is_some() {
                        // The pool says when a node is ready.
                        reason = RetryReason::Waited;
                        continue;
                    }
                    FIRST_ROUND_PAUSE * (1 << rounds.min(5))
                }
                _ => return Err(self.final_error()),
            };
            let next_round = Instant::now() + pause;
            if next_round >= self.request.deadline {
                return Err(self.final_error());
            }
            reason = RetryReason::Round;
            sleep_until(next_round).await;
        }
    }

    /// The nodes to ask in the next round; `None` if no node is ready in time.
    async fn queue(&mut self, rounds: u32) -> Option<VecDeque<Arc<Node>>> {
        if !self.request.operation.is_call() {
            return Some(self.pool.nodes().into());
        }
        loop {
            let ready = self.pool.ready();
            if !ready.is_empty() {
                // After a round in which all ready nodes failed, an ejected one may be able to answer.
                return Some(if rounds > 0 { self.pool.nodes() } else { ready }.into());
            }
            let outage = self.pool.outage().unwrap_or_default();
            let wait = match MAX_OUTAGE_TO_WAIT.checked_sub(outage) {
                Some(wait) => wait,
                // The outage may be about to end, however long it has lasted.
                None if self.pool.has_trial() => MAX_OUTAGE_TO_WAIT,
                // In a long outage, each node is asked once, and the caller gets the error.
                None => return Some(self.pool.nodes().into()),
            };
            let until = self.request.deadline.min(Instant::now() + wait);
            if !self.pool.wait_for_a_node(until).await
                && (until == self.request.deadline || Instant::now() < until)
            {
                self.last_error.get_or_insert_with(|| self.pool.last_failure());
                return None;
            }
        }
    }

    /// Asks the nodes of `queue` until one answers or none is left. `reason` says why the first one is asked,
    /// if others were asked before.
    async fn round(&mut self, mut queue: VecDeque<Arc<Node>>, reason: RetryReason) -> Round<T> {
        let Request { deadline, replay, .. } = self.request;
        let max_in_flight = replay.max_in_flight();
        let mut exchanges = FuturesUnordered::new();
        let mut delay = self.hedge_delay();
        let mut ask_more_at = Instant::now() + delay;
        let mut next = Some(Purpose::Try(reason));
        loop {
            if let Some(purpose) = next.take() {
                while let Some(node) = queue.pop_front() {
                    match self.dispatch(&node, purpose) {
                        Dispatch::Sent(exchange) => {
                            ask_more_at = Instant::now() + delay;
                            exchanges.push(exchange);
                            break;
                        }
                        Dispatch::TrialTaken if queue.is_empty() && exchanges.is_empty() => {
                            return Round::TrialTaken;
                        }
                        Dispatch::TrialTaken => {}
                        // The node stays in the queue: if the first one fails, the retry budget pays for it.
                        Dispatch::BudgetExhausted if purpose == Purpose::Hedge => {
                            queue.push_front(node);
                            ask_more_at = self.next_silence().unwrap_or(deadline);
                            break;
                        }
                        Dispatch::BudgetExhausted if exchanges.is_empty() => return Round::BudgetExhausted,
                        Dispatch::BudgetExhausted => queue.clear(),
                    }
                }
                if exchanges.is_empty() {
                    return Round::Failed;
                }
            }
            let can_ask_more = !queue.is_empty() && exchanges.len() < max_in_flight;
            let timers = self.next_silence().into_iter().chain(can_ask_more.then_some(ask_more_at));
            let wake = timers.min().unwrap_or(deadline).min(deadline);
            next = tokio::select! {
                biased;
                Some(ended) = exchanges.next() => match self.ended(ended, &mut queue) {
                    NextStep::Answer(answer) => return Round::Answered(answer),
                    NextStep::Refuse(error) => return Round::Refused(error),
                    NextStep::DeadlineExceeded => return Round::DeadlineExceeded,
                    NextStep::AskAnother(reason) => Some(Purpose::Try(reason)),
                    NextStep::Wait => None,
                },
                () = sleep_until(wake) => {
                    let now = Instant::now();
                    if now >= deadline {
                        return Round::DeadlineExceeded;
                    }
                    self.note_silence(now, &mut queue);
                    let any_silent = self.in_flight.iter().any(|attempt| attempt.is_silent);
                    if now < ask_more_at || exchanges.len() >= max_in_flight {
                        None
                    } else if !any_silent && self.pool.hedge.is_paused() {
                        ask_more_at = self.next_silence().unwrap_or(deadline);
                        None
                    } else {
                        delay = (delay * 2).min(SILENCE_TIMEOUT);
                        Some(if any_silent { Purpose::Try(RetryReason::Silent) } else { Purpose::Hedge })
                    }
                }
            };
        }
    }

    /// When the next attempt in flight becomes silent.
    fn next_silence(&self) -> Option<Instant> {
        let attempts = self.in_flight.iter().filter(|attempt| !attempt.is_silent);
        attempts.map(|attempt| attempt.started + SILENCE_TIMEOUT).min()
    }

    /// How long the first node may take before another one is asked as well. Only calls of a session in use
    /// are hedged: the hedging budget is not for candidates.
    fn hedge_delay(&self) -> Duration {
        let Request { affects_node_health, operation, .. } = self.request;
        if operation.is_call() && affects_node_health { self.pool.hedge.delay() } else { SILENCE_TIMEOUT }
    }

    /// Sends the request to `node`. It is the only place that sends requests, and so the only one that must
    /// pay for extra ones.
    fn dispatch(
        &mut self,
        node: &Arc<Node>,
        purpose: Purpose,
    ) -> Dispatch<impl Future<Output = Ended> + use<'a, T>> {
        let Request { affects_node_health, deadline, http, operation, .. } = self.request;
        let has_trial = affects_node_health && operation.is_call() && node.is_on_trial();
        if has_trial && !node.take_trial() {
            return Dispatch::TrialTaken;
        }
        let is_hedge = purpose == Purpose::Hedge && self.sent_one;
        if self.sent_one && !self.pay(purpose) {
            if has_trial {
                node.return_trial();
            }
            return Dispatch::BudgetExhausted;
        }
        self.sent_one = true;
        let (node, started) = (Arc::clone(node), Instant::now());
        let attempt = Attempt { has_trial, is_hedge, is_silent: false, node: Arc::clone(&node), started };
        self.in_flight.push(attempt);
        Dispatch::Sent(exchange(node, started, http, deadline))
    }

    /// Pays for an extra request. Returns false if its budget does not allow it.
    fn pay(&self, purpose: Purpose) -> bool {
        let reason = match purpose {
            Purpose::Hedge => {
                // A hedge that is sent is counted when it has won or lost.
                let paid = self.pool.hedge.take();
                if !paid {
                    self.metrics.hedge(HedgeResult::Denied);
                }
                return paid;
            }
            Purpose::Try(reason) => reason,
        };
        let pool = self.pool;
        let budget = if self.request.affects_node_health { &pool.budget } else { &pool.background_budget };
        let paid = budget.take();
        if paid {
            self.metrics.retry(reason);
        } else {
            self.metrics.retry_budget_exhausted.inc();
        }
        paid
    }

    fn notify_observer(&self, error: &TransitError) {
        if let Some(observer) = self.request.observer {
            observer.node_failed(error);
        }
    }

    /// The error that says the most: that of a node, or that no node has answered.
    fn final_error(&mut self) -> TransitError {
        if self.request.replay == Replay::IfUnsent && !self.in_flight.is_empty() {
            return self.no_answer_in_time().after_possible_processing();
        }
        self.last_error.take().unwrap_or_else(|| self.no_answer_in_time())
    }

    fn no_answer_in_time(&self) -> TransitError {
        let names: Vec<_> = self.in_flight.iter().map(|attempt| attempt.node.name.as_str()).collect();
        let hint =
            self.in_flight.first().map_or("is it overloaded or frozen?", |first| first.node.silence_hint());
        let message = format!("Vault at {} did not answer in time: {hint}", names.join(", "));
        TransitError::new(ErrorKind::DeadlineExceeded, message)
    }
}

impl<T> Drop for Attempts<'_, T> {
    /// Counts the attempts in flight as cancelled: another one was faster, or the caller has left.
    fn drop(&mut self) {
        for attempt in &self.in_flight {
            if attempt.is_hedge {
                self.hedge_ended(false);
            }
            if attempt.has_trial {
                attempt.node.return_trial();
            }
            let (operation, took) = (self.request.operation, attempt.started.elapsed());
            self.metrics.request(&attempt.node.name, operation, RequestOutcome::Cancelled, took);
        }
    }
}

/// Whether an error says only that a node could not be asked, or did not answer as Vault does.
fn is_no_answer(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::InvalidResponse | ErrorKind::Unreachable)
}

#[cfg(test)]
mod tests;
