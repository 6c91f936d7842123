//! The body of a record of decisions: the decisions of one tick, and the late spans that were
//! exported.
//!
//! It begins with the names of the policies that it refers to, so that each record can be read
//! alone. Groups of decisions follow, one for each hold of a lock and for each request.

use std::collections::BTreeMap;

use crate::{
    decisions::Decision,
    policy::{PolicyId, Verdict},
    sampler::Decided,
    trace::{Randomness, Threshold, TraceId, Trigger},
};

const DECIDED: u8 = 1;
const FOLLOWED: u8 = 2;
const KEPT_BIT: u32 = 60;
const EXPLICIT_BIT: u32 = 61;
/// Stands for "no request": the decider made the decision, and not a request.
const NO_POSITION: u64 = u64::MAX;

/// A decision as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct WrittenDecision {
    /// The trace.
    pub(crate) trace_id: TraceId,
    /// The decision; its policy is an id of the process that wrote it.
    pub(crate) decision: Decision,
    /// The encoded bytes of the trace.
    pub(crate) bytes: u64,
    /// All spans of the trace below this position were part of the decision.
    pub(crate) below: u64,
    /// The spans of the request at this position were part of the decision, or followed it as late
    /// spans.
    pub(crate) at: Option<u64>,
}

/// The contents of a record of decisions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WrittenDecisions {
    /// Names of policies, by the ids of the process that wrote them.
    pub names: BTreeMap<u16, String>,
    /// Decisions.
    pub decided: Vec<WrittenDecision>,
    /// Late spans of kept traces: the trace, the position of the request, and the bytes of the
    /// spans.
    pub followed: Vec<(TraceId, u64, u64)>,
}

/// Decisions that are not written yet.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    groups: Vec<u8>,
    policies: std::collections::BTreeSet<u16>,
    /// The highest position of the intake log that they name.
    pub(super) position_max: u64,
}

impl Pending {
    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The bytes that it has allocated.
    pub(crate) fn bytes(&self) -> usize {
        self.groups.capacity()
    }

    /// Adds the decisions of one hold of a lock, or of one request.
    pub(crate) fn add(&mut self, decided: &Decided) {
        let below = decided.taken_below.unwrap_or(0);
        let at = decided.position.unwrap_or(NO_POSITION);
        self.position_max = self.position_max.max(below).max(decided.position.unwrap_or(0));
        let records = &decided.decisions.records;
        if !records.is_empty() {
            self.groups.push(DECIDED);
            self.put_u64(below);
            self.put_u64(at);
            self.put_u32(records.len());
        }
        for record in records {
            let Decision { verdict, trigger, explicit_randomness } = record.decision;
            let bits = verdict.threshold.bits()
                | (trigger as u64) << 57
                | u64::from(verdict.kept) << KEPT_BIT
                | u64::from(explicit_randomness.is_some()) << EXPLICIT_BIT;
            self.groups.extend_from_slice(&record.trace_id.0);
            self.put_u64(bits);
            self.groups.extend_from_slice(&verdict.policy.0.to_le_bytes());
            self.put_u32(record.bytes as usize);
            if let Some(randomness) = explicit_randomness {
                self.put_u64(randomness.0);
            }
            self.policies.insert(verdict.policy.0);
        }
        if !decided.late_kept.is_empty() {
            self.groups.push(FOLLOWED);
            self.put_u64(at);
            self.put_u32(decided.late_kept.len());
        }
        for (trace_id, bytes) in &decided.late_kept {
            self.groups.extend_from_slice(&trace_id.0);
            self.put_u64(*bytes);
        }
    }

    /// Appends the decisions of `other`.
    pub(crate) fn append(&mut self, mut other: Pending) {
        self.groups.append(&mut other.groups);
        self.policies.append(&mut other.policies);
        self.position_max = self.position_max.max(other.position_max);
    }

    /// The beginning of the body, with the names of policies; the groups follow it.
    pub(super) fn names(&self, names: &[String]) -> Vec<u8> {
        let named = |id: &u16| Some((*id, names.get(usize::from(*id))?));
        let named: Vec<_> = self.policies.iter().filter_map(named).collect();
        let mut head = (named.len() as u32).to_le_bytes().to_vec();
        for (id, name) in named {
            head.extend_from_slice(&id.to_le_bytes());
            head.extend_from_slice(&(name.len() as u32).to_le_bytes());
            head.extend_from_slice(name.as_bytes());
        }
        head
    }

    pub(super) fn groups(&self) -> &[u8] {
        &self.groups
    }

    fn put_u64(&mut self, number: u64) {
        self.groups.extend_from_slice(&number.to_le_bytes());
    }

    fn put_u32(&mut self, number: usize) {
        self.groups.extend_from_slice(&(number as u32).to_le_bytes());
    }
}

impl WrittenDecisions {
    /// Reads a body; `None` if it is malformed. A body with the right checksum is malformed only if
    /// another program wrote it.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut rest = Bytes(body);
        let mut written = WrittenDecisions::default();
        for _ in 0..rest.u32()? {
            let id = rest.u16()?;
            let len = rest.u32()? as usize;
            let name = std::str::from_utf8(rest.take(len)?).ok()?;
            written.names.insert(id, name.to_owned());
        }
        while !rest.0.is_empty() {
            match rest.take(1)? {
                [DECIDED] => written.read_decided(&mut rest)?,
                [FOLLOWED] => {
                    let at = rest.u64()?;
                    for _ in 0..rest.u32()? {
                        written.followed.push((rest.trace_id()?, at, rest.u64()?));
                    }
                }
                _ => return None,
            }
        }
        Some(written)
    }

    /// The highest position of the intake log that it names.
    pub(super) fn highest_position(&self) -> u64 {
        let decided = self.decided.iter().map(|written| written.below.max(written.at.unwrap_or(0)));
        decided.chain(self.followed.iter().map(|(_, at, _)| *at)).max().unwrap_or(0)
    }

    fn read_decided(&mut self, rest: &mut Bytes<'_>) -> Option<()> {
        let below = rest.u64()?;
        let at = Some(rest.u64()?).filter(|at| *at != NO_POSITION);
        for _ in 0..rest.u32()? {
            let trace_id = rest.trace_id()?;
            let bits = rest.u64()?;
            let policy = PolicyId(rest.u16()?);
            let bytes = u64::from(rest.u32()?);
            let is_explicit = bits >> EXPLICIT_BIT & 1 == 1;
            let explicit_randomness =
                if is_explicit { Some(Randomness(rest.u64()?)) } else { None };
            let verdict = Verdict {
                kept: bits >> KEPT_BIT & 1 == 1,
                policy,
                threshold: Threshold::from_bits(bits & ((1 << 57) - 1)),
            };
            let trigger = *Trigger::ALL.get((bits >> 57 & 7) as usize)?;
            let decision = Decision { verdict, trigger, explicit_randomness };
            self.decided.push(WrittenDecision { trace_id, decision, bytes, below, at });
        }
        Some(())
    }
}

/// The bytes that have not been read yet.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.first_chunk().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn trace_id(&mut self) -> Option<TraceId> {
        self.array().map(TraceId)
    }
}
