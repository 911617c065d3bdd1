use super::*;

fn ids(expected: &Expected, name: &str) -> Vec<u32> {
    let (_, ids) = expected.integers(name);
    ids.iter().map(|id| *id as u32).collect()
}

/// The tokens that the template and the vocabulary make, images left out.
fn check_prompt(generator: &Generator, request: &GenerateRequest, expected: &[u32]) {
    let prompt = generator.prompt(request).unwrap();
    assert_eq!(prompt.n_tokens(), expected.len());
    let image = generator.image_token.as_ref().map(|token| {
        let piece = crate::vocabulary::Piece::Special(token.clone());
        generator
            .tokens
            .pieces
            .iter()
            .position(|own| *own == piece)
            .unwrap() as u32
    });
    let text = expected.iter().copied().filter(|id| Some(*id) != image);
    assert!(prompt.text_ids().eq(text));
}

fn check_own(name: &str) {
    let mut generator = fixture(name);
    let (requests, expected) = conversations(name, &generator);
    let answers = generator.generate(requests.clone()).unwrap();
    for (index, (request, answer)) in requests.iter().zip(answers).enumerate() {
        let answer = answer.unwrap();
        let theirs = ids(&expected, &format!("{index}.generated_ids"));
        assert_eq!(answer.token_ids, theirs, "{name} {index}");
        assert_eq!(answer.finish_reason, FinishReason::Length);
        let prompt = ids(&expected, &format!("{index}.input_ids"));
        check_prompt(&generator, request, &prompt);
        assert_eq!(answer.prompt_tokens, prompt.len());
        let again = alone(&mut generator, request);
        assert_eq!(
            (again.token_ids, again.text),
            (answer.token_ids, answer.text)
        );
        let free = GenerateRequest {
            limits: limits(24, 0),
            ..request.clone()
        };
        let free = alone(&mut generator, &free);
        let theirs = ids(&expected, &format!("{index}.plain_ids"));
        assert_eq!(free.token_ids, theirs, "{name} {index}");
        let ended = free.token_ids.len() < 24;
        assert_eq!(free.finish_reason == FinishReason::Stop, ended);
    }
}

#[test]
fn answers_are_those_of_the_reference() {
    check_own("qwen2_5_vl");
    check_own("qwen3_vl");
    check_own("qwen3");
}

#[test]
fn given_answers_are_as_likely_as_the_reference_has_them() {
    for name in ["qwen2_5_vl", "qwen3_vl", "qwen3"] {
        let mut generator = fixture(name);
        let (requests, expected) = conversations(name, &generator);
        for (index, request) in requests.iter().enumerate() {
            let (_, theirs) = expected.floats(&format!("{index}.log_chances"));
            // Single letters are single tokens, with the ids of the sorted bytes.
            let letters = ["!", "A", "z"];
            let ours = generator.score(request, &letters, false).unwrap();
            for (letter, ours) in letters.iter().zip(ours) {
                let id = generator.vocabulary.encode(letter).unwrap();
                assert_eq!(id.len(), 1);
                let theirs = f64::from(theirs[id[0] as usize]);
                assert!(
                    (ours - theirs).abs() < 1e-4,
                    "{name} {letter}: {ours} for {theirs}"
                );
            }
        }
        // Two tokens are as likely as the first, and the second after it.
        let request = question("Which?", 1);
        let scores = generator.score(&request, &["A", "AB", "A"], false).unwrap();
        assert!(scores[1] < scores[0]);
        assert!((scores[2] - scores[0]).abs() < 1e-6);
        let ended = generator.score(&request, &["A"], true).unwrap();
        assert!(ended[0] < scores[0]);
    }
}

/// The larger set: `folder` holds `model`, `prompts.json` and what came of them.
fn check_shared(name: &str, config: Option<&str>) {
    let Some(folder) = shared(name) else { return };
    let mut model = folder.join("model");
    let changed = tempfile::tempdir().unwrap();
    if let Some(config) = config {
        for file in fs::read_dir(&model).unwrap().flatten() {
            fs::copy(file.path(), changed.path().join(file.file_name())).unwrap();
        }
        let target = changed.path().join("config.json");
        fs::remove_file(&target).unwrap();
        fs::copy(folder.join(config), target).unwrap();
        model = changed.path().to_owned();
    }
    let mut generator = load(&model, &GeneratorOptions::default());
    let prompts = fs::read_to_string(folder.join("prompts.json")).unwrap();
    let prompts: Value = serde_json::from_str(&prompts).unwrap();
    let expected = Expected::read(&folder.join("gen.safetensors"));
    let requests: Vec<GenerateRequest> = (0..3)
        .map(|index| {
            let images = prompts["png_per_conv"][index].as_array().unwrap().iter();
            let images = images.map(|image| folder.join(format!("png/img{image}.png")));
            let images: Vec<PathBuf> = images.collect();
            conversation(&generator, &prompts["convs"][index], &images)
        })
        .collect();
    for (index, request) in requests.iter().enumerate() {
        let text = generator.template.render(&request.messages).unwrap();
        assert_eq!(text, prompts["texts"][index].as_str().unwrap());
        check_prompt(
            &generator,
            request,
            &ids(&expected, &format!("{index}.input_ids")),
        );
        let theirs = ids(&expected, &format!("{index}.generated_ids"));
        assert_eq!(
            alone(&mut generator, request).token_ids,
            theirs,
            "{name} {index}"
        );
    }
    let answers = generator.generate(requests.clone()).unwrap();
    let batch = ids(&expected, "batch.generated_ids");
    for (index, answer) in answers.into_iter().enumerate() {
        let theirs = match index {
            2 => ids(&expected, "2.generated_ids"),
            _ => batch[index * 24..(index + 1) * 24].to_vec(),
        };
        assert_eq!(
            answer.unwrap().token_ids,
            theirs,
            "{name} {index} in a batch"
        );
    }
    let free = GenerateRequest {
        limits: limits(24, 0),
        ..requests[0].clone()
    };
    let free = alone(&mut generator, &free);
    assert_eq!(free.token_ids, ids(&expected, "plain_greedy_0"));
    let ended = free.token_ids.len() < 24;
    assert_eq!(free.finish_reason == FinishReason::Stop, ended);
}

#[test]
fn answers_about_pages_are_those_of_the_larger_set() {
    check_shared("qwen2_5_vl_tied", None);
    check_shared("qwen2_5_vl_untied", None);
    check_shared("qwen3_vl_tied", None);
    check_shared("qwen3_vl_untied", None);
}

#[test]
fn an_older_configuration_of_the_same_weights_gives_the_same_answers() {
    check_shared("qwen2_5_vl_tied", Some("config_hub_style.json"));
    check_shared("qwen2_5_vl_untied", Some("config_hub_style.json"));
}

#[test]
fn quantized_weights_speak_too_and_take_less_memory() {
    let options = GeneratorOptions {
        quantize: Some(crate::loader::Quantization::Q8_0),
        quantize_vision: true,
        ..GeneratorOptions::default()
    };
    let mut small = load(&own("qwen3_vl"), &options);
    let mut whole = fixture("qwen3_vl");
    // The embeddings, a large part of so small a model, stay floats.
    assert!(small.memory_bytes() * 10 < whole.memory_bytes() * 7);
    let (requests, _) = conversations("qwen3_vl", &whole);
    let labels = ["A", "b", "("];
    let exact = whole.score(&requests[0], &labels, false).unwrap();
    let near = small.score(&requests[0], &labels, false).unwrap();
    for (near, exact) in near.iter().zip(exact) {
        assert!((near - exact).abs() < 0.3, "{near} for {exact}");
    }
    assert_eq!(alone(&mut small, &requests[0]).token_ids.len(), 24);
}
