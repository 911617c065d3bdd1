use std::collections::HashMap;

use super::*;

/// Numbers from 0 on, below `n`: the same at every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % n
    }
}

/// Requests of all kinds, some alike at their beginning.
fn mixture(name: &str, generator: &Generator) -> Vec<GenerateRequest> {
    let (mut requests, _) = conversations(name, generator);
    let long = "The same long beginning of a question, which many pages are asked: ";
    for index in 0..5 {
        let mut request = question(&format!("{long}{index}"), 3 + 4 * index);
        request.limits.min_new_tokens = 0;
        request.sampling = Sampling {
            temperature: 0.9,
            top_p: 0.95,
            seed: index as u64,
            repetition_penalty: 1.1,
            ..Sampling::default()
        };
        requests.push(request);
    }
    requests.push(question("x", 1));
    requests
}

#[test]
fn whoever_joins_and_leaves_an_answer_is_the_same_as_alone() {
    for name in ["qwen2_5_vl", "qwen3_vl", "qwen3"] {
        let mut generator = fixture(name);
        let requests = mixture(name, &generator);
        let expected: Vec<Generated> = requests
            .iter()
            .map(|request| alone(&mut fixture(name), request))
            .collect();
        let mut dice = Dice(7);
        generator.max_batch = 3;
        for _ in 0..6 {
            let mut order: Vec<usize> = (0..requests.len()).collect();
            for place in (1..order.len()).rev() {
                order.swap(place, dice.below(place + 1));
            }
            let mut whose = HashMap::new();
            let mut texts: HashMap<RequestId, String> = HashMap::new();
            let mut n_done = 0;
            while n_done < requests.len() {
                if !order.is_empty() && dice.below(3) > 0 {
                    let index = order.pop().unwrap();
                    whose.insert(generator.submit(requests[index].clone()).unwrap(), index);
                }
                for event in generator.step().unwrap() {
                    match event {
                        Event::Text { id, delta } => {
                            assert!(!delta.is_empty());
                            texts.entry(id).or_default().push_str(&delta);
                        }
                        Event::Done { id, generated } => {
                            let expected = &expected[whose[&id]];
                            assert_eq!(generated.token_ids, expected.token_ids, "{name}");
                            assert_eq!(generated.text, expected.text);
                            assert_eq!(texts.remove(&id).unwrap_or_default(), expected.text);
                            n_done += 1;
                        }
                        Event::Failed { error, .. } => panic!("{error}"),
                    }
                }
            }
            assert!(generator.is_idle() && texts.is_empty());
        }
    }
}

#[test]
fn a_beginning_in_common_is_computed_once() {
    let mut generator = fixture("qwen3");
    let beginning = "Answer the question about this document in one word, please: ";
    let ask = |rest: &str| question(&format!("{beginning}{rest}"), 4);
    let prompt =
        |generator: &Generator, request: &GenerateRequest| generator.prompt(request).unwrap();
    let first = ask("who?");
    assert_eq!(generator.n_known(&prompt(&generator, &first)), 0);
    let expected = alone(&mut fixture("qwen3"), &first).token_ids;
    let answers = generator
        .generate(vec![first.clone(), ask("when?"), first.clone()])
        .unwrap();
    assert_eq!(answers[0].as_ref().unwrap().token_ids, expected);
    assert_eq!(answers[2].as_ref().unwrap().token_ids, expected);
    let third = prompt(&generator, &ask("where?"));
    let n_beginning = generator.count(beginning);
    assert!(generator.n_known(&third) >= n_beginning);
    let other = question("Something else entirely, from its first word on", 4);
    assert!(generator.n_known(&prompt(&generator, &other)) < n_beginning);
}

#[test]
fn the_cache_does_not_grow_over_five_hundred_requests() {
    let mut generator = fixture("qwen3");
    let mut base = None;
    for round in 0..50 {
        let requests = (0..10).map(|index| {
            question(
                &format!("The same question again and again, number {round} {index}"),
                2,
            )
        });
        let answers = generator.generate(requests.collect()).unwrap();
        assert!(answers.iter().all(Result::is_ok));
        let bytes = generator.cache_bytes();
        assert!(
            *base.get_or_insert(bytes) >= bytes,
            "{bytes} bytes after round {round}"
        );
    }
    assert!(generator.is_idle());
}

#[test]
fn requests_wait_for_room_in_their_order() {
    let mut generator = fixture("qwen3");
    let request = question("How much is it?", 40);
    let room = generator.count_prompt(&request).unwrap() + 40;
    // Room for two and a half at once.
    generator.max_cache_bytes = room * generator.shape.token_bytes() * 5 / 2;
    let ids: Vec<RequestId> = (0..5)
        .map(|_| generator.submit(request.clone()).unwrap())
        .collect();
    let mut done = Vec::new();
    let mut most = 0;
    while !generator.is_idle() {
        for event in generator.step().unwrap() {
            if let Event::Done { id, .. } = event {
                done.push(id);
            }
        }
        most = most.max(generator.running.len());
        assert!(generator.cache_bytes() <= generator.max_cache_bytes);
    }
    assert_eq!((done, most), (ids, 2));
}

#[test]
fn a_request_too_large_for_the_cache_is_refused_and_the_others_go_on() {
    let mut generator = load(
        &own("qwen3"),
        &GeneratorOptions {
            cache_mb: Some(1),
            ..GeneratorOptions::default()
        },
    );
    assert_eq!(generator.max_cache_bytes, 1 << 20);
    generator.max_cache_bytes = 100 * generator.shape.token_bytes();
    let results = generator
        .generate(vec![question("a", 3), question("b", 500), question("c", 3)])
        .unwrap();
    assert!(results[0].is_ok() && results[2].is_ok());
    let error = results[1].as_ref().unwrap_err();
    let n = generator.count_prompt(&question("b", 500)).unwrap() + 500;
    let bytes = generator.shape.token_bytes();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot generate: its {n} tokens need {} bytes of cache, and there are {}",
            n * bytes,
            100 * bytes
        )
    );
    assert!(
        error.hint().starts_with("raise `cache_mb` to 1, or lower"),
        "{}",
        error.hint()
    );
}

#[test]
fn a_kept_beginning_gives_way_to_a_request_that_needs_the_room() {
    let mut generator = fixture("qwen3");
    let text = "A question that begins like another one, at some length, and ends so: ";
    let requests = (0..3).map(|index| question(&format!("{text}{index}"), 2));
    generator.generate(requests.collect()).unwrap();
    let kept = generator.cache_bytes();
    assert!(kept > 0);
    let large = question("b", 60);
    let room = generator.count_prompt(&large).unwrap() + 60;
    generator.max_cache_bytes = room * generator.shape.token_bytes();
    assert!(alone(&mut generator, &large).token_ids.len() == 60);
    assert_eq!(generator.cache_bytes(), 0);
}

#[test]
fn cancelled_requests_leave_nothing_behind() {
    let mut generator = fixture("qwen3");
    generator.max_batch = 1;
    let running = generator.submit(question("a", 50)).unwrap();
    let waiting = generator.submit(question("b", 50)).unwrap();
    let last = generator.submit(question("c", 2)).unwrap();
    generator.step().unwrap();
    generator.cancel(running);
    generator.cancel(waiting);
    let events = run(&mut generator);
    assert!(events.iter().all(|event| event.id() == last));
    assert!(matches!(events.last(), Some(Event::Done { .. })));
    assert_eq!(generator.cache_bytes(), 0);
}

#[test]
fn long_prompts_are_computed_in_stretches() {
    for name in ["qwen2_5_vl", "qwen3_vl"] {
        let mut generator = fixture(name);
        let (requests, _) = conversations(name, &generator);
        let expected = alone(&mut generator, &requests[1]);
        generator.pass_tokens = 7;
        assert_eq!(
            alone(&mut generator, &requests[1]).token_ids,
            expected.token_ids
        );
    }
}

#[test]
fn generating_tells_the_news_of_others_later() {
    let mut generator = fixture("qwen3");
    let other = generator.submit(question("other", 2)).unwrap();
    assert!(alone(&mut generator, &question("own", 9)).token_ids.len() == 9);
    let events = run(&mut generator);
    assert!(matches!(events.last(), Some(Event::Done { id, .. }) if *id == other));
}
