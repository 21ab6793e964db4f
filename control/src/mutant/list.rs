//! The planted bugs, one by one.
//!
//! Each entry: what is wrong, and in brackets where. Then its name, the invariants one of which must ring first, and the
//! pains of other gateways' users that it imitates, by their number in the list of peers (none: it imitates a fault).

/// Makes the enum and its tables out of one list, so that none can lack an entry.
macro_rules! mutants {
    ($($(#[$doc:meta])* $variant:ident $name:literal breaks $breaks:expr, pains $pains:expr;)+) => {
        /// A planted bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Mutant {
            $($(#[$doc])* $variant,)+
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// What it is called on a command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The invariants, by number, one of which it must break first.
            #[must_use]
            pub const fn breaks(self) -> &'static [u8] {
                match self { $(Self::$variant => &$breaks,)+ }
            }

            /// The pains of other gateways' users it imitates, by number.
            #[must_use]
            pub const fn pains(self) -> &'static [u8] {
                match self { $(Self::$variant => &$pains,)+ }
            }
        }
    };
}

mutants! {
    // The ledger.

    /// A settlement that is repeated, because its acknowledgement was lost, is charged once more, late
    /// (`quota/ledger.rs`, `settle_pinned`; `quota/book.rs`, `late`).
    SettleTwice "settle-twice" breaks [1], pains [2];
    /// What expired gives its quota back and stays live, so its end gives it back again (`quota/book.rs`, `end`).
    ReleaseAfterExpiry "release-after-expiry" breaks [1], pains [1];
    /// A settlement that comes after the expiry is acknowledged and charged to nobody (`quota/ledger.rs`, `settle`).
    LateDropped "late-dropped" breaks [1, 9], pains [6];
    /// What is held does not count against the limit, only what is spent: check, then act (`quota/sums.rs`, `used`).
    Overdraft "overdraft" breaks [2], pains [4];
    /// An extension is granted without a look at the limits (`quota/ledger.rs`, `extend_to`).
    ExtendUnchecked "extend-unchecked" breaks [2], pains [4];
    /// An account's rolling window counts what the accounts behind it spent (`quota/ledger/limits.rs`, `slices`).
    RollingOfOthers "rolling-of-others" breaks [2, 13], pains [];
    /// Facts applied after an upgrade leave out the extensions (`quota.rs`, `apply_entry`).
    RecoverySkipsExtends "recovery-skips-extends" breaks [1, 10], pains [5];
    /// The store lets whoever believes in its last run draw before he has asserted what he holds (`quota/store.rs`,
    /// `perform`).
    OtherRunDraws "other-run-draws" breaks [1, 2], pains [7];

    // The owner of a share of it.

    /// While the store is away, an allotment lends more than was drawn: N gateways, N limits (`quota/owner/allotment.rs`,
    /// `lend`).
    LendBeyondAllotment "lend-beyond-allotment" breaks [2], pains [7];
    /// Neither side leaves room for the other's clock, and the owner counts from when the answer came (`quota/ledger.rs`,
    /// `drift`; `quota/owner/allotment.rs`, `stops` and `allotment_answered`).
    AllotmentIgnoresDrift "allotment-ignores-drift" breaks [1, 2], pains [7];
    /// A store that answers again is not believed (`quota/owner/answers.rs`, `hear`).
    DegradedForEver "degraded-for-ever" breaks [9], pains [14];
    /// An end that was not acknowledged is sent again only when it would be given up (`quota/owner/terminals.rs`,
    /// `repeat_ending`).
    EndingNeverRepeated "ending-never-repeated" breaks [1, 9], pains [1];

    // What a request costs.

    /// A client that leaves before its answer began leaves its reservation behind (`plane/end.rs`, `conclude`).
    RefundLost "refund-lost" breaks [1, 9], pains [1];
    /// Requests that a crash ended without an answer keep what was held for them (`plane/end.rs`, `conclude`;
    /// `plane/restart.rs`).
    CrashLeaks "crash-leaks" breaks [1, 9, 10], pains [1, 5];
    /// The estimate is charged, not the use (`plane/end.rs`, `bill`).
    EstimateCharged "estimate-charged" breaks [3, 13], pains [3];
    /// A bill is made with the price of its end, not of its beginning (`plane/end.rs`, `bill`).
    PriceNotPinned "price-not-pinned" breaks [3, 13], pains [];
    /// A client that leaves in the middle is charged nothing (`plane/end.rs`, `leave`).
    DisconnectBillsNothing "disconnect-bills-nothing" breaks [3, 6], pains [6];
    /// A client that leaves in the middle is charged all that was held (`plane/end.rs`, `bill`).
    DisconnectBillsEverything "disconnect-bills-everything" breaks [3, 13], pains [6];
    /// A stream holds all that its client allows instead of a slice (`plane/arrive.rs`, `first_slice`).
    WholeMaximumHeld "whole-maximum-held" breaks [2, 13], pains [3];
    /// An account without limits of its own is charged to the first that has some (`plane/arrive.rs`, `reserve`).
    WrongAccount "wrong-account" breaks [2, 9, 13], pains [];
    /// Settlements are not made durable (`plane/arrive.rs`, `drain_quota`).
    PersistDropped "persist-dropped" breaks [1, 10], pains [5];

    // What becomes of a request.

    /// A client that leaves is told the end, and then told that it has left (`plane/end.rs`, `handle_client_gone`).
    TwoOutcomes "two-outcomes" breaks [3], pains [];
    /// A backoff ends a day after the deadline (`plane/arrive.rs`, `set_phase`).
    TimerLost "timer-lost" breaks [9, 12], pains [19];
    /// A backoff after a 429 ends, and begins again at once, for ever (`plane/end.rs`, `request_due`).
    BusySpins "busy-spins" breaks [7], pains [9];
    /// Each attempt gets the whole configured time, not what is left of its request's (`plane/pick.rs`, `order`).
    DeadlineNotPassed "deadline-not-passed" breaks [12], pains [10];
    /// A stream may be silent until its deadline (`plane/pick.rs`, `order`).
    NoGapTimeout "no-gap-timeout" breaks [9, 12], pains [10];
    /// A client leaves, and nobody tells the replica (`plane/end.rs`, `abandon`).
    CancelNotSent "cancel-not-sent" breaks [12], pains [10];
    /// A client that leaves between two attempts is not heard (`plane/end.rs`, `handle_client_gone`).
    RetryAfterClientLeft "retry-after-client-left" breaks [3, 12], pains [10];
    /// A stream that broke after its first token is begun anew (`attempt.rs`, `hopeless`). What is charged in the end is not what
    /// was delivered.
    SecondBeginning "second-beginning" breaks [3, 6], pains [8];
    /// A broken stream is continued by whoever is there, whatever model he runs (`plane/pick.rs`, `continues`).
    ResumesAnywhere "resumes-anywhere" breaks [6], pains [8];
    /// A broken stream is continued from its beginning (`plane/pick.rs`, `order`).
    ResumesFromTheStart "resumes-from-the-start" breaks [6], pains [8];
    /// A stream that broke after its first token ends as a whole one (`plane/end.rs`, `give_up`).
    BrokenEndsClean "broken-ends-clean" breaks [6], pains [8];
    /// Attempts are counted as by two layers of which each retries (`attempt.rs`, `attempts_max`).
    RetryLayersMultiply "retry-layers-multiply" breaks [7], pains [12];
    /// Retries cost nothing (`attempt.rs`, `decide`).
    BudgetUnpaid "budget-unpaid" breaks [7], pains [12];

    // A second attempt beside the first.

    /// The attempt that brings its first token second is not told to stop (`plane/hedge.rs`, `race_won`).
    LoserNotStopped "loser-not-stopped" breaks [12], pains [10];
    /// Every request that waits gets a second attempt, whatever the share and the budget have left (`attempt/hedge.rs`).
    HedgesUnbounded "hedges-unbounded" breaks [7], pains [12];
    /// The prompt is charged for each of two attempts beside each other (`plane/end.rs`, `bill`).
    LoserCharged "loser-charged" breaks [3, 13], pains [2];

    // Sessions, idempotency keys, rates.

    /// An answer that broke off is charged and frees its key, so a repetition is charged too (`plane/end.rs`,
    /// `leave_rooms`).
    KeyForgotten "key-forgotten" breaks [3, 14], pains [2];
    /// A repetition runs beside what it repeats (`session/idempotency.rs`, `begin`).
    KeyIgnoredInFlight "key-ignored-in-flight" breaks [3], pains [2];
    /// A new life knows no idempotency key of the last one (`plane/restart.rs`).
    RecoveryForgetsKeys "recovery-forgets-keys" breaks [3, 10], pains [2];
    /// A turn that ends before its first attempt does not pass the turn on (`plane/end.rs`, `pass_turn`).
    TurnNeverPassed "turn-never-passed" breaks [9, 13], pains [];
    /// Any number of turns wait for one session (`session/turns.rs`, `begin_turn`).
    QueueUnbounded "queue-unbounded" breaks [7], pains [15];
    /// All accounts share one bucket of requests a minute (`rate/limiter.rs`, `asks`).
    SharedRateBucket "shared-rate-bucket" breaks [13], pains [];

    // Affinity.

    /// A session moves without a new epoch (`affinity.rs`, `bind`).
    SkipFencing "skip-fencing" breaks [4], pains [];
    /// A session that was forgotten begins at the first epoch again (`affinity.rs`, `forget_if`).
    EpochForgotten "epoch-forgotten" breaks [4], pains [];
    /// A session is bound when it is sent, to a replica that may never answer (`plane/pick.rs`, `dispatch`).
    BindAtDispatch "bind-at-dispatch" breaks [4], pains [17];
    /// Facts applied after an upgrade leave a session at its first home (`affinity.rs`, `restore`).
    RecoveryKeepsOldHome "recovery-keeps-old-home" breaks [4, 10], pains [];
    /// A replica's hash depends on the slot it happens to have here, so gateways disagree on homes (`balance/seat.rs`,
    /// `name_hash`).
    HomeBySlot "home-by-slot" breaks [4], pains [17];

    // What gateways share.

    /// Each gateway holds accounts to their rates by itself (`plane/sharing.rs`, `consult`).
    RatesNotConsulted "rates-not-consulted" breaks [14], pains [];
    /// A session that another gateway moved at the same time stays where this one put it (`plane/sharing.rs`, `hear_home`).
    LostHomeKept "lost-home-kept" breaks [14], pains [17];
    /// The others are not told that a key was charged (`plane/sharing.rs`, `tell_end`).
    ChargedKeyNotTold "charged-key-not-told" breaks [14], pains [2];
    /// What the shared rate refuses keeps what was reserved for it (`plane/end.rs`, `conclude`).
    LimitedHoldKept "limited-hold-kept" breaks [1, 9], pains [1];
    /// Each request waits for a store that is known to be away (`shared/asks.rs`, `ask` and `wants`).
    ConsultsWhileAway "consults-while-away" breaks [14], pains [];

    // Breakers.

    /// An ejection that is over begins again (`breaker.rs`, `advance`).
    NeverHalfOpen "never-half-open" breaks [5], pains [16];
    /// A probe that says nothing about its endpoint (cancelled, or 429) keeps its slot (`breaker/endpoint.rs`, `judge`).
    ProbeSlotLeaked "probe-slot-leaked" breaks [5], pains [16];
    /// Half-open admits whatever comes (`breaker/endpoint.rs`, `admission`).
    HalfOpenFloods "half-open-floods" breaks [5], pains [19];
    /// A probe that fails ejects for a quarter of the base (`breaker.rs`, `advance`).
    RetripShorter "retrip-shorter" breaks [5], pains [11];
    /// The first ejection of a pool asks for room like the others, so that a lone endpoint is never ejected
    /// (`breaker/config.rs`, `admits`).
    LoneNeverCooled "lone-never-cooled" breaks [5, 8], pains [11];
    /// An attempt is scored when it is accepted, and not when it ends (`plane/progress.rs`, `accept`; `plane/end.rs`,
    /// `release`).
    SuccessAtStart "success-at-start" breaks [5, 8], pains [18];
    /// An upstream that refuses our key is asked again and again: it fails fast and looks idle (`plane/end.rs`, `verdict`).
    FaultNeutral "fault-neutral" breaks [5, 8], pains [13];
    /// 429, 503 and what the client did wrong count as failures (`plane/end.rs`, `verdict`).
    BusyOpens "busy-opens" breaks [5], pains [16];
    /// A replica that says it is full gets its share of the next round (`plane/end.rs`, `pause_if_full`).
    FullIsAskedAgain "full-is-asked-again" breaks [8, 9], pains [13];
    /// A connection that is refused does not count as a failure (`plane/end.rs`, `verdict`).
    ConnectNotCounted "connect-not-counted" breaks [5, 8], pains [11];
    /// The balancer is not told who is ejected (`plane/pick.rs`, `sync`).
    EjectedStillPicked "ejected-still-picked" breaks [5, 8], pains [19];

    // Picks.

    /// A session goes where it is bound though that one is ejected (`balance/choose.rs`, `affine`).
    StalePin "stale-pin" breaks [5], pains [17];
    /// A session goes where it is bound however much that one has to do (`balance/choose.rs`, `affine`).
    SaturatedPin "saturated-pin" breaks [8], pains [17];
    /// What a home above its bound cannot take goes to the next in line, bound or no bound (`balance/choose.rs`, `rank`).
    OverflowToNeighbour "overflow-to-neighbour" breaks [8], pains [17];
    /// An attempt that fails is taken off its endpoint's count twice (`plane/end.rs`, `release`).
    NegativeInFlight "negative-in-flight" breaks [7, 8], pains [13];
    /// What an endpoint said of its load once counts for good (`balance/report.rs`, `age`).
    ReportNeverAged "report-never-aged" breaks [8], pains [19];
    /// What an endpoint reports is added to what was sent there, so that our own work counts twice (`balance/report.rs`,
    /// `Report`).
    ReportCountsOwn "report-counts-own" breaks [8], pains [];
    /// Reports are believed beyond the load bound: where all but one claim to be busy, that one gets everything
    /// (`balance/tier.rs`, `least` and `less`).
    ReportsUnbounded "reports-unbounded" breaks [8], pains [];
    /// A drain is noted and picks go on (`plane/membership.rs`, `handle_drain`).
    DrainedStillPicked "drained-still-picked" breaks [8], pains [];

    // Membership and configuration.

    /// Discovery that knows of nobody empties the pools (`registry/apply.rs`, `apply` and `vouches`).
    EmptyRegistryApplied "empty-registry-applied" breaks [5, 9], pains [];
    /// An older answer replaces a newer one (`registry/apply.rs`, `apply`).
    StaleRegistryApplied "stale-registry-applied" breaks [5, 9], pains [];
    /// A reload takes whoever is ejected out of the picks for good (`plane/membership.rs`, `handle_configured`).
    ConfigEditEvicts "config-edit-evicts" breaks [5, 9], pains [15];

    // Snapshots.

    /// A restored plane draws the jitter of its first minute again (`attempt.rs`, `Retry`).
    RestoreReseeds "restore-reseeds" breaks [11], pains [];
    /// A restored plane counts its picks from zero, so that equals do not take turns (`balance.rs`, `Balancer`).
    RestoreRecounts "restore-recounts" breaks [11], pains [];

    // Between the roles: these are in `transport`, and are looked for in tier B, behind doors.

    /// A connection to the chat role that breaks before the answer begins counts as one that was refused: the gateway role asks
    /// another, and both charge (`upstream/wire/refusal.rs`, `broken`).
    LostIsRefused "lost-is-refused" breaks [3], pains [2, 12];
    /// The chat role works on for a client that left the gateway role (`front/rpc/pieces.rs`, `Pieces`).
    LeaverNotHeard "leaver-not-heard" breaks [12], pains [10];
    /// The gateway role keeps an idempotency key to itself, so that a repetition is charged too (`upstream/wire/chat.rs`,
    /// `shown`).
    KeyNotPassedOn "key-not-passed-on" breaks [3], pains [2];

    // Resumable streams: these are in `transport`, too, and are looked for in tier B, where clients come back.

    /// Who comes back gets the event again that it has (`streams.rs`, `resume_here`).
    ResumeRepeatsLast "resume-repeats-last" breaks [6], pains [];
    /// A stream whose reader is gone runs to its end (`streams/kept.rs`, `gives_up_at`).
    GraceNeverEnds "grace-never-ends" breaks [12], pains [10];
    /// Whoever knows a stream's name may read it (`streams/kept.rs`, `may_resume`).
    StreamOfAnyone "stream-of-anyone" breaks [13], pains [];
    /// A stream that was given up ends as a whole one (`front/resumable.rs`, `end`).
    GivenUpEndsClean "given-up-ends-clean" breaks [6], pains [8];
    /// An earlier reader goes on beside the one that took over (`streams/kept.rs`, `look`).
    BothReadersStay "both-readers-stay" breaks [6], pains [];
}
