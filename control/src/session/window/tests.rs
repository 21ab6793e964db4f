use proptest::prelude::*;

use super::*;

const fn line(part: Part, tokens: u64) -> Line {
    Line { part, tokens: Tokens(tokens) }
}

const SYSTEM: Line = line(Part::System, 1);
const PLAIN: Line = line(Part::Plain, 1);
const CALL: Line = line(Part::Call { results: 1 }, 1);
const RESULT: Line = line(Part::Result, 1);

#[test]
fn the_last_messages_that_fit_go_behind_what_opens_the_session() {
    let lines = [SYSTEM, PLAIN, PLAIN, PLAIN, PLAIN];
    assert_eq!(window(&lines, 4, Tokens(10)), [0, 1, 2, 3, 4]);
    assert_eq!(window(&lines, 4, Tokens(3)), [0, 3, 4]);
    assert_eq!(window(&lines, 4, Tokens(0)), [0, 4]);
    assert_eq!(window(&[], 0, Tokens(5)), [0; 0]);
    assert_eq!(window(&lines, 9, Tokens(3)), [0, 3, 4]);
}

#[test]
fn a_call_goes_with_its_result_or_not_at_all() {
    let lines = [PLAIN, CALL, RESULT, PLAIN];
    assert_eq!(window(&lines, 3, Tokens(4)), [0, 1, 2, 3]);
    assert_eq!(window(&lines, 3, Tokens(2)), [3], "the result alone would fit");
    // What is asked is the result: its call comes along, whatever it costs.
    assert_eq!(window(&lines[..3], 2, Tokens(0)), [1, 2]);
}

#[test]
fn what_is_no_pair_is_left_out() {
    let unanswered = [PLAIN, CALL, PLAIN];
    assert_eq!(window(&unanswered, 2, Tokens(9)), [0, 2]);
    let half = [line(Part::Call { results: 2 }, 1), RESULT, PLAIN];
    assert_eq!(window(&half, 2, Tokens(9)), [2]);
    let orphans = [RESULT, PLAIN, RESULT, PLAIN];
    assert_eq!(window(&orphans, 3, Tokens(9)), [1, 3]);
    // One of two results was stored, the other is asked now.
    assert_eq!(window(&[half[0], RESULT, RESULT], 2, Tokens(0)), [0, 1, 2]);
}

fn lines() -> impl Strategy<Value = Vec<Line>> {
    let part = (0..10_u8, 1..3_u32).prop_map(|(kind, results)| match kind {
        0 => Part::System,
        1..5 => Part::Plain,
        5..7 => Part::Call { results },
        _ => Part::Result,
    });
    proptest::collection::vec((part, 0..40_u64).prop_map(|(part, n)| line(part, n)), 0..40)
}

proptest! {
    #[test]
    fn no_window_breaks_a_pair_a_bound_or_the_order(
        lines in lines(), asked in 0..40_usize, max in 0..400_u64,
    ) {
        let asked = asked.min(lines.len());
        let kept = window(&lines, asked, Tokens(max));
        prop_assert!(kept.windows(2).all(|pair| pair[0] < pair[1]));
        prop_assert!((asked..lines.len()).all(|at| kept.contains(&at)));
        let opening = lines[..asked].iter().take_while(|line| line.part == Part::System).count();
        prop_assert!((0..opening).all(|at| kept.contains(&at)));
        // What goes always, by another count: the opening, what is asked, and the call it answers.
        let mut from = asked;
        while from > opening && from < lines.len() && lines[from].part == Part::Result {
            from -= 1;
        }
        let always = |at: usize| at < opening || at >= from;
        let chosen: u64 = kept.iter().filter(|at| !always(**at)).map(|at| lines[*at].tokens.0).sum();
        let fixed: u64 =
            (0..lines.len()).filter(|at| always(*at)).map(|at| lines[at].tokens.0).sum();
        prop_assert!(chosen == 0 || chosen + fixed <= max);
        for &at in kept.iter().filter(|at| !always(**at)) {
            match lines[at].part {
                Part::Call { results } => {
                    let behind = lines[at + 1..].iter().take_while(|l| l.part == Part::Result).count();
                    let together = (at..=at + results as usize).all(|place| kept.contains(&place));
                    prop_assert!(behind >= results as usize && together, "{at} of {kept:?}");
                }
                Part::Result => {
                    let call = (0..at).rev().find(|place| lines[*place].part != Part::Result);
                    let has_call = call.is_some_and(|call| {
                        kept.contains(&call) && matches!(lines[call].part, Part::Call { .. })
                    });
                    prop_assert!(has_call, "{at} of {kept:?}");
                }
                Part::System | Part::Plain => {}
            }
        }
    }

    #[test]
    fn a_larger_window_keeps_all_that_a_smaller_one_kept(
        lines in lines(), asked in 0..40_usize, max in 0..200_u64, more in 0..200_u64,
    ) {
        let small = window(&lines, asked, Tokens(max));
        let large = window(&lines, asked, Tokens(max + more));
        prop_assert!(small.iter().all(|at| large.contains(at)));
    }
}
