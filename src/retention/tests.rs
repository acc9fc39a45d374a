//! Retention by tables. A snapshot is written `11-21T14:05` (of 2026, or with its year), then its
//! marks: `*` head, `+` proven, `~` drill failed, `!` flagged, `/2` on the branch of epoch 2. Without
//! any mark the last one is head and proven.

use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const NOW: &str = "12-31T23:00";

fn time(text: &str) -> Timestamp {
    let year = if text.len() == "11-21T14:05".len() { "2026-" } else { "" };
    format!("{year}{text}:00Z").parse().expect(text)
}

fn bare(word: &str) -> &str {
    word.split(['*', '+', '!', '~', '/']).next().expect("a part")
}

fn facts(text: &str) -> Vec<SnapshotFacts> {
    let mut facts: Vec<SnapshotFacts> = Vec::new();
    for word in text.split_whitespace() {
        let taken_at = time(bare(word));
        facts.push(SnapshotFacts {
            id: SnapshotId::next(taken_at, facts.last().map(|previous| &previous.id), 0),
            taken_at,
            flags: [('!', Flag::Shrunken), ('/', Flag::Branch)]
                .into_iter()
                .filter_map(|(mark, flag)| word.contains(mark).then_some(flag))
                .collect(),
            is_proven: word.contains('+'),
            is_refuted: word.contains('~'),
            is_head: word.contains('*'),
            epoch: word.split_once('/').map_or(1, |(_, epoch)| epoch.parse().expect("an epoch")),
            is_base: false,
        });
    }
    if let Some(last) = facts.last_mut()
        && !text.contains(['*', '+', '!', '~'])
    {
        last.is_proven = true;
        last.is_head = true;
    }
    facts
}

/// Plans at `now` and compares the times of what is kept.
fn check_at(now: &str, safety_age: Duration, policy: &str, snapshots: &str, kept: &str) {
    let facts = facts(snapshots);
    let plan = plan(&facts, &policy.parse().expect(policy), time(now), safety_age);
    let removed: Vec<&SnapshotId> = plan.removed().map(|decision| &decision.id).collect();
    let words = snapshots.split_whitespace().map(bare);
    let survivors: Vec<&str> =
        words.zip(&facts).filter(|(_, fact)| !removed.contains(&&fact.id)).map(|(word, _)| word).collect();
    assert_eq!(survivors.join(" "), kept, "policy `{policy}` over `{snapshots}`\n{plan}");
}

fn check(policy: &str, snapshots: &str, kept: &str) {
    check_at(NOW, Duration::ZERO, policy, snapshots, kept);
}

#[test]
fn a_failed_drill_freezes_until_the_same_or_a_newer_one_is_proven() {
    let all = "11-21T14:00+ 11-21T15:00 11-21T16:00 11-21T17:00";
    check("1l", &format!("{all}*"), "11-21T14:00 11-21T17:00");
    check("1l", &format!("{all}*~"), &all.replace('+', ""));
    check("1l", "11-21T14:00+ 11-21T15:00~ 11-21T16:00 11-21T17:00*", &all.replace('+', ""));
    check("1l", "11-21T14:00+ 11-21T15:00~ 11-21T16:00+ 11-21T17:00*", "11-21T16:00 11-21T17:00");
    // What was damaged in storage since: newer ones are known to restore.
    check("1l", "11-21T14:00~ 11-21T15:00 11-21T16:00 11-21T17:00+*", "11-21T17:00");
}

#[test]
fn what_is_proven_beyond_the_head_proves_nothing_for_the_line() {
    check("1l", "11-21T14:00+ 11-21T15:00 11-21T16:00* 11-21T17:00+", "11-21T14:00 11-21T16:00 11-21T17:00");
    let all = "11-21T14:00 11-21T15:00* 11-21T16:00+";
    check("1l", all, "11-21T14:00 11-21T15:00 11-21T16:00");
}

#[test]
fn a_branch_stands_for_nothing_and_pushes_nothing_out() {
    // The hour is that of the line's snapshot, though the branch has a younger and a proven one.
    check("1h", "12-31T14:05*+ 12-31T14:10+/2", "12-31T14:05 12-31T14:10");
    check(
        "2h",
        "12-31T13:05 12-31T14:05*+ 12-31T15:10/2 12-31T16:10/2",
        "12-31T13:05 12-31T14:05 12-31T15:10 12-31T16:10",
    );
    // An hour in which only a branch was taken is none.
    check("2h", "12-31T12:05 12-31T13:05/2 12-31T14:05*+", "12-31T12:05 12-31T13:05 12-31T14:05");
    // It is never the last proven.
    check("1h", "11-01T12:05+ 11-01T13:05+/2 12-31T14:05*", "11-01T12:05 12-31T14:05");
    // Nothing on the line is proven: everything waits, a branch's proof or not.
    check("1h", "12-30T12:05 12-31T13:05+/2 12-31T14:05*", "12-30T12:05 12-31T13:05 12-31T14:05");
}

#[test]
fn a_branch_is_thinned_by_itself_and_goes_after_its_time() {
    // Each of two branches keeps its newest hour; none is "not published to the end".
    check(
        "1h",
        "12-31T13:00*+ 12-31T14:05/2 12-31T14:06/3 12-31T15:00/2 12-31T15:10/3",
        "12-31T13:00 12-31T15:00 12-31T15:10",
    );
    check("9h", "12-31T13:00*+ 12-31T14:05/2 12-31T14:06/2", "12-31T13:00 12-31T14:06");
    // 30 days after it was taken, also where it is younger than the head.
    check("9h", "12-01T22:59/2 12-01T23:01/3 12-31T13:00*+", "12-01T23:01 12-31T13:00");
    check("9h", "11-01T13:00*+ 12-01T22:59/2", "11-01T13:00");
    // The safety age and a freeze hold for it as for all.
    check_at(
        "12-31T15:20",
        HOUR,
        "1h",
        "12-31T13:00*+ 12-31T14:30/2 12-31T15:10/2",
        "12-31T13:00 12-31T14:30 12-31T15:10",
    );
    check("1h", "12-31T13:00*!+ 12-01T13:00/2", "12-31T13:00 12-01T13:00");
}

#[test]
fn hours() {
    check("1h", "", "");
    check("1h", "11-21T14:05", "11-21T14:05");
    check("2h", "11-21T14:05 11-21T14:10 11-21T15:00", "11-21T14:10 11-21T15:00");
    check("1h", "11-21T14:05 11-21T14:10 11-21T15:00", "11-21T15:00");
    check("1h", "11-21T14:59 11-21T15:00", "11-21T15:00");
    check("2h", "11-21T14:59 11-21T15:00", "11-21T14:59 11-21T15:00");
    // The same hour of another day is another hour.
    check("2h", "11-20T14:05 11-21T14:05", "11-20T14:05 11-21T14:05");
    // Hours with no snapshot use up nothing.
    check("3h", "01-01T00:00 06-01T00:00 11-21T15:00", "01-01T00:00 06-01T00:00 11-21T15:00");
}

#[test]
fn days() {
    check("1d", "11-21T00:00 11-21T23:59", "11-21T23:59");
    check("2d", "11-21T23:59 11-22T00:00", "11-21T23:59 11-22T00:00");
    check("2d", "11-20T10:00 11-21T10:00 11-21T12:00 11-22T09:00", "11-21T12:00 11-22T09:00");
    check("2d", "2025-12-31T23:59 01-01T00:00", "2025-12-31T23:59 01-01T00:00");
    check("9d", "02-28T12:00 2024-02-29T12:00", "02-28T12:00 2024-02-29T12:00");
}

#[test]
fn weeks() {
    // 2026-11-22 is a Sunday.
    check("1w", "11-16T00:00 11-22T23:59", "11-22T23:59");
    check("2w", "11-22T23:59 11-23T00:00", "11-22T23:59 11-23T00:00");
    // One ISO week over the turn of a year.
    check("2w", "2025-12-29T00:00 01-04T00:00", "01-04T00:00");
    check("2w", "2025-12-28T00:00 01-04T00:00", "2025-12-28T00:00 01-04T00:00");
}

#[test]
fn months_and_years() {
    check("1m", "11-01T00:00 11-30T23:59", "11-30T23:59");
    check("2m", "11-30T23:59 12-01T00:00", "11-30T23:59 12-01T00:00");
    check("2m", "2025-11-30T00:00 11-30T00:00", "2025-11-30T00:00 11-30T00:00");
    check(
        "2y",
        "2024-01-01T00:00 2025-01-01T00:00 2025-12-31T23:59 01-01T00:00",
        "2025-12-31T23:59 01-01T00:00",
    );
    check("1y", "01-01T00:00 12-31T22:00", "12-31T22:00");
}

#[test]
fn the_last_ones_and_rules_together() {
    check("1l", "11-21T14:05 11-21T14:10", "11-21T14:10");
    check("2l", "11-21T14:00 11-21T14:05 11-21T14:10", "11-21T14:05 11-21T14:10");
    check("9l", "11-21T14:00 11-21T14:05", "11-21T14:00 11-21T14:05");
    // One snapshot may stand for several periods.
    check("1h 1d 1w 1m 1y", "11-21T14:00 11-21T14:05", "11-21T14:05");
    check(
        "2h 2d 2m",
        "09-30T10:00 10-31T10:00 11-20T08:00 11-20T09:00 11-21T13:00 11-21T14:00 11-21T14:05",
        "10-31T10:00 11-20T09:00 11-21T13:00 11-21T14:05",
    );
}

#[test]
fn floors() {
    // Neither the head nor the last proven one, though the policy has no place for them.
    check("1d", "11-19T10:00 11-20T10:00+ 11-21T10:00 11-22T10:00*", "11-20T10:00 11-22T10:00");
    check("1d", "11-19T10:00+ 11-20T10:00+ 11-21T10:00*", "11-20T10:00 11-21T10:00");
    // Proven, but flagged: an older proven one without flags stays as well.
    check(
        "1d",
        "11-18T10:00+ 11-19T10:00+ 11-20T10:00+! 11-21T10:00 11-22T10:00*",
        "11-19T10:00 11-20T10:00 11-22T10:00",
    );
    // What the head has not reached is left alone.
    check("1d", "11-20T10:00 11-21T10:00*+ 11-21T11:00 11-21T12:00", "11-21T10:00 11-21T11:00 11-21T12:00");
}

#[test]
fn freezes() {
    let all = "11-20T10:00 11-20T10:05 11-21T10:00";
    check("1d", "11-20T10:00 11-20T10:05 11-21T10:00*+!", all);
    check("1d", "11-20T10:00+ 11-20T10:05+ 11-21T10:00*!", all);
    // No head: nobody knows which one is the newest.
    check("1d", "11-20T10:00 11-20T10:05 11-21T10:00+", all);
    // Nothing is proven, or only what is flagged.
    check("1d", "11-20T10:00 11-20T10:05 11-21T10:00*", all);
    check("1d", "11-20T10:00+! 11-20T10:05 11-21T10:00*", all);
    // The flagged one is no longer the newest: it goes, and never in place of a good one.
    check("1d", "11-20T10:00+ 11-20T10:05! 11-21T10:00*+", "11-21T10:00");
    check("2d", "11-20T10:00+ 11-20T10:05! 11-21T10:00*+", "11-20T10:00 11-21T10:00");
    check("2d", "11-20T10:00! 11-20T10:05! 11-21T10:00*+", "11-20T10:05 11-21T10:00");
}

#[test]
fn the_safety_age() {
    let snapshots = "11-21T10:00 11-21T10:05 11-21T11:00 11-21T11:05";
    check_at("11-21T12:00", HOUR, "1d", snapshots, "11-21T11:05");
    check_at("11-21T11:59", HOUR, "1d", snapshots, "11-21T11:00 11-21T11:05");
    check_at("11-21T12:00", 24 * HOUR, "1d", snapshots, snapshots);
    check_at("11-21T12:00", Duration::MAX, "1d", snapshots, snapshots);
}

#[test]
fn clocks() {
    let snapshots = "11-20T10:00 11-20T10:05 11-21T10:00 11-22T10:00";
    let kept = "11-20T10:05 11-21T10:00 11-22T10:00";
    // Decades later, with nothing new, the same ones are kept as today.
    check("3d", snapshots, kept);
    check_at("2099-01-01T00:00", 24 * HOUR, "3d", snapshots, kept);
    // A clock that is back in the past cannot tell what is old.
    check_at("11-20T00:00", Duration::ZERO, "3d", snapshots, snapshots);
    check_at("11-20T12:00", Duration::ZERO, "3d", snapshots, kept);
    // One day of a clock in 2099: while it lasts, one day of three is used up …
    let jumped = "11-19T10:00 11-20T10:00 11-21T10:00 2099-01-01T00:00 2099-01-01T01:00";
    check_at("2099-01-01T02:00", Duration::ZERO, "3d", jumped, "11-20T10:00 11-21T10:00 2099-01-01T01:00");
    // … and when it is over those snapshots are kept beside the policy, not in it.
    let after = "11-19T10:00 11-20T10:00 2099-01-01T00:00 2099-01-01T01:00 11-21T10:00 11-22T10:00";
    check_at(
        "11-23T00:00",
        Duration::ZERO,
        "3d",
        after,
        "11-20T10:00 2099-01-01T00:00 2099-01-01T01:00 11-21T10:00 11-22T10:00",
    );
    // The clock went back within an hour: the id, not the time, says which one is newer.
    check("1h", "11-21T14:50 11-21T14:20", "11-21T14:20");
}

#[test]
fn a_plan_reads_as_a_list_of_reasons() {
    let snapshots =
        facts("10-31T10:00+ 11-19T09:00 11-20T10:00 11-21T13:00 11-21T14:05* 11-21T14:06 2099-01-01T00:00");
    let plan = plan(&snapshots, &"2l 2h 2d 2w 1m".parse().expect("valid"), time("11-21T14:10"), HOUR);
    insta::assert_snapshot!(plan.to_string(), @r"
    keep    20990101T000000.000Z-00000000  not published to the end, taken in the future
    keep    20261121T140600.000Z-00000000  not published to the end, younger than the safety age
    keep    20261121T140500.000Z-00000000  last 1, hourly 2026-11-21T14, daily 2026-11-21, weekly 2026-W47, monthly 2026-11, newest, younger than the safety age
    keep    20261121T130000.000Z-00000000  last 2, hourly 2026-11-21T13
    keep    20261120T100000.000Z-00000000  daily 2026-11-20
    remove  20261119T090000.000Z-00000000
    keep    20261031T100000.000Z-00000000  weekly 2026-W44, last proven
    ");
    insta::assert_json_snapshot!(plan.decisions[5..], @r#"
    [
      {
        "id": "20261119T090000.000Z-00000000",
        "taken_at": "2026-11-19T09:00:00Z",
        "keep": []
      },
      {
        "id": "20261031T100000.000Z-00000000",
        "taken_at": "2026-10-31T10:00:00Z",
        "keep": [
          "weekly 2026-W44",
          "last proven"
        ]
      }
    ]
    "#);

    let flagged = facts("11-20T10:00 11-21T14:05*!");
    let plan = super::plan(&flagged, &Policy::default(), time("11-21T15:10"), HOUR);
    insta::assert_snapshot!(plan.to_string(), @r"
    keep    20261121T140500.000Z-00000000  hourly 2026-11-21T14, daily 2026-11-21, newest
    keep    20261120T100000.000Z-00000000  hourly 2026-11-20T10, daily 2026-11-20, weekly 2026-W47, monthly 2026-11, the newest snapshot is shrunken
    ");
}

fn any_facts() -> impl Strategy<Value = Vec<SnapshotFacts>> {
    let snapshot = (0i64..100_000_000, 0u8..8, any::<bool>(), any::<bool>());
    (prop::collection::vec(snapshot, 0..60), any::<prop::sample::Index>(), 0u8..8).prop_map(
        |(raw, head, with_head)| {
            let mut facts: Vec<SnapshotFacts> = Vec::new();
            let mut second = 1_700_000_000;
            for (step, flagged, is_proven, small) in raw {
                second += if small { step / 100_000 } else { step / 20 - 1_000_000 };
                let taken_at = Timestamp::from_second(second).expect("in range");
                facts.push(SnapshotFacts {
                    id: SnapshotId::next(taken_at, facts.last().map(|previous| &previous.id), 0),
                    taken_at,
                    flags: if flagged == 0 { vec![Flag::Empty] } else { Vec::new() },
                    is_proven,
                    is_refuted: !is_proven && flagged == 1,
                    is_head: false,
                    epoch: 1,
                    is_base: false,
                });
            }
            if with_head > 0 && !facts.is_empty() {
                // Mostly the last one, as in life.
                let head = if with_head > 2 { facts.len() - 1 } else { head.index(facts.len()) };
                facts[head].is_head = true;
            }
            facts
        },
    )
}

fn any_policy() -> impl Strategy<Value = Policy> {
    prop::collection::btree_map(0usize..6, 1u32..6, 1..4).prop_map(|rules| {
        let words: Vec<String> =
            rules.into_iter().map(|(unit, count)| format!("{count}{}", Unit::ALL[unit].letter())).collect();
        words.join(" ").parse().expect("valid")
    })
}

fn kept(plan: &Plan) -> Vec<&SnapshotId> {
    plan.decisions.iter().filter(|decision| !decision.keep.is_empty()).map(|decision| &decision.id).collect()
}

proptest! {
    #[test]
    fn what_was_kept_stays_kept(facts in any_facts(), policy in any_policy(), later in 0i64..200_000_000, hours in 0u32..100) {
        let now = Timestamp::from_second(1_700_000_000 + later).expect("in range");
        let first = plan(&facts, &policy, now, hours * HOUR);
        let left: Vec<SnapshotFacts> = facts.into_iter().filter(|fact| kept(&first).contains(&&fact.id)).collect();
        let second = plan(&left, &policy, now, hours * HOUR);
        prop_assert_eq!(second.removed().count(), 0, "{}\nthen\n{}", first, second);
    }

    #[test]
    fn the_head_the_last_proven_and_the_young_are_never_removed(facts in any_facts(), policy in any_policy(), later in 0i64..200_000_000, hours in 0u32..100) {
        let now = Timestamp::from_second(1_700_000_000 + later).expect("in range");
        let plan = plan(&facts, &policy, now, hours * HOUR);
        let kept = kept(&plan);
        let newest = |test: fn(&SnapshotFacts) -> bool| facts.iter().rfind(|fact| test(fact));
        let floors = [
            facts.last(),
            newest(|fact| fact.is_head),
            newest(|fact| fact.is_proven),
            newest(|fact| fact.is_proven && fact.flags.is_empty()),
        ];
        let young = facts.iter().filter(|fact| fact.taken_at + hours * HOUR > now);
        for fact in floors.into_iter().flatten().chain(young) {
            prop_assert!(kept.contains(&&fact.id), "{:?}\n{}", fact, plan);
        }
        let frozen = newest(|fact| fact.is_head).is_none_or(|head| !head.flags.is_empty());
        prop_assert!(!frozen || kept.len() == facts.len());
    }

    #[test]
    fn a_wider_policy_and_a_longer_safety_age_keep_no_less(facts in any_facts(), policy in any_policy(), more in 0u32..4, later in 0i64..200_000_000, hours in 0u32..100) {
        let now = Timestamp::from_second(1_700_000_000 + later).expect("in range");
        let wider: Vec<String> =
            policy.rules().map(|(unit, count)| format!("{}{}", count + more as usize, unit.letter())).collect();
        let less = plan(&facts, &policy, now, hours * HOUR);
        let no_less = plan(&facts, &wider.join(" ").parse().expect("valid"), now, (hours + more) * HOUR);
        let no_less = kept(&no_less);
        prop_assert!(kept(&less).into_iter().all(|id| no_less.contains(&id)));
    }

    #[test]
    fn the_order_of_the_input_does_not_matter(
        (facts, shuffled) in any_facts().prop_flat_map(|facts| (Just(facts.clone()), Just(facts).prop_shuffle())),
        policy in any_policy(),
        later in 0i64..200_000_000,
    ) {
        let now = Timestamp::from_second(1_700_000_000 + later).expect("in range");
        prop_assert_eq!(plan(&facts, &policy, now, HOUR), plan(&shuffled, &policy, now, HOUR));
    }

    #[test]
    fn every_rule_keeps_as_many_periods_as_it_can(facts in any_facts(), policy in any_policy()) {
        let now = Timestamp::from_second(2_000_000_000).expect("in range");
        let plan = plan(&facts, &policy, now, HOUR);
        for (unit, count) in policy.rules() {
            let head = facts.iter().find(|fact| fact.is_head);
            let past = facts.iter().filter(|fact| head.is_none_or(|head| fact.id <= head.id));
            let all: std::collections::BTreeSet<String> = match unit {
                Unit::Last => past.map(|fact| fact.id.to_string()).collect(),
                _ => past.filter_map(|fact| Some(unit.period(fact.taken_at)?.1)).collect(),
            };
            let stood_for = plan.decisions.iter().flat_map(|decision| &decision.keep);
            let stood_for = stood_for.filter(|reason| matches!(reason, Reason::Rule(of, _) if *of == unit)).count();
            prop_assert_eq!(stood_for, count.min(all.len()));
        }
    }
}
