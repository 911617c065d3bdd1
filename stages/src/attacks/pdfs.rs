//! PDFs that are made to harm.

use super::Attack;
use super::deflate::{compressed, repeated};
use super::file::File;
use super::pictures::{jpeg_header, jpeg2000_header};

const GIB: u64 = 1 << 30;

pub(super) fn all() -> Vec<Attack> {
    let attack = |(name, bytes)| Attack {
        name,
        media_type: "application/pdf",
        bytes,
    };
    let lists = [
        recursion(),
        bombs(),
        patterns(),
        structure(),
        boxes(),
        images(),
    ];
    lists.into_iter().flatten().map(attack).collect()
}

type Named = Vec<(&'static str, Vec<u8>)>;

/// Things that contain themselves, or each other many times.
fn recursion() -> Named {
    let mut file = File::new();
    let form = "/Type /XObject /Subtype /Form /BBox [0 0 300 300]";
    let own = file.next();
    file.stream(
        &format!("{form} /Resources << /XObject << /F {own} 0 R >> >>"),
        "/F Do /F Do",
    );
    let itself = file.page(&format!("/XObject << /F {own} 0 R >>"), "/F Do");

    let mut file = File::new();
    let mut inner = file.stream(form, "0 0 1 1 re f");
    for _ in 0..24 {
        let resources = format!("{form} /Resources << /XObject << /F {inner} 0 R >> >>");
        inner = file.stream(&resources, "/F Do ".repeat(8));
    }
    let chain = file.page(&format!("/XObject << /F {inner} 0 R >>"), "/F Do");

    let mut file = File::new();
    let group = format!("{form} /Group << /S /Transparency /I true /K true >>");
    let mut inner = file.stream(&group, "0 0 200 200 re f");
    for _ in 0..200 {
        let entries = format!(
            "{group} /Resources << /XObject << /F {inner} 0 R >> \
             /ExtGState << /G << /BM /Multiply /ca 0.9 >> >> >>"
        );
        inner = file.stream(&entries, "/G gs /F Do");
    }
    let groups = file.page(&format!("/XObject << /F {inner} 0 R >>"), "/F Do");

    let mut file = File::new();
    let mask = file.next();
    file.stream(
        &format!(
            "{form} /Group << /S /Transparency /CS /DeviceGray >> /Resources << /ExtGState \
             << /G << /SMask << /S /Luminosity /G {mask} 0 R >> >> >> >>"
        ),
        "/G gs 0 0 300 300 re f",
    );
    let state = format!("/ExtGState << /G << /SMask << /S /Luminosity /G {mask} 0 R >> >> >>");
    let own_mask = file.page(&state, "/G gs 0 0 300 300 re f");

    let mut file = File::new();
    let (glyph, font) = (file.next(), file.next() + 1);
    file.stream("", "1000 0 d0 BT /T 1 Tf (aaaaaaaa) Tj ET");
    file.add(format!(
        "<< /Type /Font /Subtype /Type3 /FontBBox [0 0 1000 1000] /FontMatrix [.001 0 0 .001 0 0] \
         /CharProcs << /a {glyph} 0 R >> /Encoding << /Differences [97 /a] >> /FirstChar 97 \
         /LastChar 97 /Widths [1000] /Resources << /Font << /T {font} 0 R >> >> >>"
    ));
    let own_glyph = file.page(
        &format!("/Font << /T {font} 0 R >>"),
        "BT /T 20 Tf 50 50 Td (aaaa) Tj ET",
    );

    let mut file = File::new();
    let pattern = file.next();
    file.stream(
        &format!(
            "/PatternType 1 /PaintType 1 /TilingType 1 /BBox [0 0 9 9] /XStep 9 /YStep 9 \
             /Resources << /Pattern << /P {pattern} 0 R >> >>"
        ),
        "/Pattern cs /P scn 0 0 9 9 re f",
    );
    let own_pattern = file.page(
        &format!("/Pattern << /P {pattern} 0 R >>"),
        "/Pattern cs /P scn 0 0 300 300 re f",
    );

    let mut file = File::new();
    let content = file.next();
    file.add(format!("[{content} 0 R {content} 0 R]"));
    let own_content = file.page_with(&format!("/MediaBox [0 0 9 9] /Contents {content} 0 R"));
    vec![
        ("a form that contains itself", itself),
        ("forms that contain the next eight times, 24 deep", chain),
        ("200 transparency groups inside each other", groups),
        ("a soft mask that is masked by itself", own_mask),
        ("a glyph that is written with itself", own_glyph),
        ("a pattern that is painted with itself", own_pattern),
        ("contents that contain themselves", own_content),
    ]
}

/// Streams that are larger than memory.
fn bombs() -> Named {
    let of_content = |filters: &str, content: &[u8]| {
        let mut file = File::new();
        let content = file.stream(&format!("/Filter [{filters}]"), content);
        file.page_with(&format!("/MediaBox [0 0 300 300] /Contents {content} 0 R"))
    };
    let once = repeated(b' ', GIB / 4);
    let four = compressed(&repeated(b' ', 4 * GIB));
    let thrice = compressed(&compressed(&repeated(b' ', 5 * GIB)));
    // Not spaces but work: a path that never ends.
    let path = compressed(&b"1 1 m 299 299 l S ".repeat(4 << 20));
    let mut file = File::new();
    let bomb = file.stream("/Filter [/FlateDecode /FlateDecode /FlateDecode]", &thrice);
    let font = file.add(format!(
        "<< /Type /Font /Subtype /TrueType /BaseFont /B /FontDescriptor << /Type /FontDescriptor \
         /FontName /B /Flags 4 /FontFile2 {bomb} 0 R >> >>"
    ));
    let font = file.page(
        &format!("/Font << /F {font} 0 R >>"),
        "BT /F 9 Tf (a) Tj ET",
    );
    let mut file = File::new();
    let lzw = "/ASCIIHexDecode /RunLengthDecode /FlateDecode /FlateDecode";
    let mixed = file.stream(&format!("/Filter [{lzw}]"), "ff".repeat(100_000));
    let mixed = file.page_with(&format!("/MediaBox [0 0 9 9] /Contents {mixed} 0 R"));
    let mut file = File::new();
    let objects = file.stream(
        "/Type /ObjStm /N 2000000000 /First 9 /Filter [/FlateDecode /FlateDecode]",
        &four,
    );
    let objects = file.page_with(&format!("/MediaBox [0 0 9 9] /Contents {objects} 0 R"));
    vec![
        (
            "a content stream of 256 MB",
            of_content("/FlateDecode", &once),
        ),
        (
            "a content stream of 4 GB",
            of_content("/FlateDecode /FlateDecode", &four),
        ),
        (
            "a content stream of 5 GB, compressed three times",
            of_content("/FlateDecode /FlateDecode /FlateDecode", &thrice),
        ),
        ("four million lines", of_content("/FlateDecode", &path)),
        ("a font of 5 GB", font),
        ("filters that do not fit the data", mixed),
        ("an object stream of 4 GB", objects),
    ]
}

/// Little to write, much to paint.
fn patterns() -> Named {
    let mut file = File::new();
    let tiny = file.stream(
        "/PatternType 1 /PaintType 1 /TilingType 1 /BBox [0 0 1 1] /XStep 0.00001 /YStep 0.00001 \
         /Resources << >>",
        "0 0 1 1 re f",
    );
    let tiling = file.page(
        &format!("/Pattern << /P {tiny} 0 R >>"),
        "/Pattern cs /P scn 0 0 300 300 re f",
    );
    let huge_cell = {
        let mut file = File::new();
        let pattern = file.stream(
            "/PatternType 1 /PaintType 1 /TilingType 1 /BBox [0 0 1000000 1000000] /XStep 0.5 \
             /YStep 0.5 /Resources << >>",
            "0 0 1000000 1000000 re f",
        );
        file.page(
            &format!("/Pattern << /P {pattern} 0 R >>"),
            "/Pattern cs /P scn 0 0 300 300 re f",
        )
    };
    let dashes = File::new().page(
        "",
        "[0.00001 0.00001] 0 d 1 w 0 0 m 100000 100000 l S 0 0 m 100 9 9 100 300 300 c S",
    );
    let wide = File::new().page(
        "",
        "1e30 w 1 J 1 j 0 0 m 1e30 1e30 l -1e30 5 l S".repeat(99),
    );
    let shading = |function: &str, kind: &str| {
        let mut file = File::new();
        let function = file.stream(
            "/FunctionType 4 /Domain [0 1 0 1] /Range [0 1 0 1 0 1]",
            function,
        );
        let shading = file.add(format!(
            "<< {kind} /ColorSpace /DeviceRGB /Function {function} 0 R >>"
        ));
        file.page(
            &format!("/Shading << /S {shading} 0 R >>"),
            "300 0 0 300 0 0 cm /S sh",
        )
    };
    let work = format!("{{ {} pop dup dup }}", "dup sin cos exp ".repeat(50_000));
    let deep = format!("{}{}", "{ ".repeat(100_000), "} ".repeat(100_000));
    let doubling = format!("{{ {} }}", "dup 2 copy 4 copy 8 copy ".repeat(5_000));
    let by_function = "/ShadingType 1 /Domain [0 1 0 1]";
    let mut file = File::new();
    let mesh = file.stream(
        "/ShadingType 4 /ColorSpace /DeviceRGB /BitsPerCoordinate 8 /BitsPerComponent 8 \
         /BitsPerFlag 8 /Decode [0 300 0 300 0 1 0 1 0 1] /Filter /FlateDecode",
        repeated(0, 200 << 20),
    );
    let mesh = file.page(&format!("/Shading << /S {mesh} 0 R >>"), "/S sh");
    let mut file = File::new();
    let sampled = file.stream(
        "/FunctionType 0 /Domain [0 1 0 1 0 1 0 1] /Range [0 1 0 1 0 1] \
         /Size [60000 60000 60000 60000] /BitsPerSample 32",
        "x",
    );
    let space = format!("[/DeviceN [/A /B /C /D] /DeviceRGB {sampled} 0 R]");
    let sampled = file.page(
        &format!("/ColorSpace << /N {space} >>"),
        "/N cs 1 1 1 1 scn 0 0 99 99 re f",
    );
    vec![
        ("a pattern of tiny steps", tiling),
        ("a pattern of huge cells", huge_cell),
        ("dashes of a hundred-thousandth of a point", dashes),
        ("lines wider than the world", wide),
        (
            "a shading with much to compute",
            shading(&work, by_function),
        ),
        (
            "a function with blocks 100,000 deep",
            shading(&deep, by_function),
        ),
        (
            "a function that fills its stack",
            shading(&doubling, by_function),
        ),
        ("a mesh of 30 million triangles", mesh),
        ("a sampled function of 10^19 samples", sampled),
    ]
}

/// Damage below the level of pages.
fn structure() -> Named {
    let loops = File::new().tree("/Kids [2 0 R 2 0 R] /Count 2");
    let mut file = File::new();
    let (first, second) = (file.next(), file.next() + 1);
    file.add(format!(
        "<< /Type /Pages /Kids [{second} 0 R {second} 0 R] /Count 9 >>"
    ));
    file.add(format!(
        "<< /Type /Pages /Kids [{first} 0 R {first} 0 R] /Count 9 >>"
    ));
    let crossed = file.tree(&format!("/Kids [{first} 0 R] /Count 99"));
    let mut file = File::new();
    let page = file.add("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>");
    let count = file.tree(&format!("/Kids [{page} 0 R] /Count 2000000000"));
    let nested = |open: &str, close: &str| {
        let n = 100_000;
        let mut file = File::new();
        let object = file.add(format!("{}{}", open.repeat(n), close.repeat(n)));
        file.page_with(&format!("/MediaBox [0 0 9 9] /Annots {object} 0 R"))
    };
    let in_content = |open: &str| File::new().page("", open.repeat(200_000));
    let flood = {
        let mut file = File::new();
        file.put(2, "<< /Type /Pages /Kids [] /Count 0 >>");
        file.put(1, "<< /Type /Catalog /Pages 2 0 R >>");
        file.end_with(
            "xref\n0 4294967295\n0000000000 65535 f \ntrailer\n<< /Size 4294967295 /Root 1 0 R \
             /Prev PLACE >>\n",
        )
    };
    let sections = {
        let mut file = File::new();
        file.put(2, "<< /Type /Pages /Kids [] /Count 0 >>");
        file.put(1, "<< /Type /Catalog /Pages 2 0 R >>");
        let many = "4000000000 1\n0000000000 00000 n \n".repeat(50_000);
        file.end_with(&format!(
            "xref\n{many}trailer\n<< /Size 99 /Root 1 0 R /Prev PLACE >>\n"
        ))
    };
    let table_of_streams = {
        let mut file = File::new();
        file.put(2, "<< /Type /Pages /Kids [] /Count 0 >>");
        file.put(1, "<< /Type /Catalog /Pages 2 0 R >>");
        let place = file.next();
        let table = compressed(&repeated(0, 2 * GIB));
        let table_object = file.stream(
            "/Type /XRef /Size 2000000000 /W [1 8 8] /Index [0 2000000000] /Root 1 0 R \
             /Filter [/FlateDecode /FlateDecode]",
            table,
        );
        debug_assert_eq!(place, table_object);
        file.end_with("")
    };
    let mut file = File::new();
    let own = file.next();
    file.add(format!("{own} 0 R"));
    let own_reference = file.page_with(&format!("/MediaBox {own} 0 R /Contents {own} 0 R"));
    let mut file = File::new();
    let kids: String = "2 0 R ".repeat(200_000);
    let page = file.add("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>");
    let many_kids = file.tree(&format!("/Kids [{kids} {page} 0 R] /Count 200000"));
    vec![
        ("a page tree that contains itself", loops),
        ("two page trees that contain each other", crossed),
        ("a claim of two thousand million pages", count),
        ("a page tree that contains itself 200,000 times", many_kids),
        ("arrays 100,000 deep", nested("[", "]")),
        ("dictionaries 100,000 deep", nested("<</A ", ">>")),
        ("parentheses 200,000 deep", in_content("(")),
        ("arrays 200,000 deep in the content", in_content("[")),
        ("states saved 200,000 times", in_content("q ")),
        ("marks opened 200,000 times", in_content("/A <<>> BDC ")),
        ("a table of 4 thousand million objects", flood),
        ("a table of 50,000 sections that follows itself", sections),
        ("a table stream of 2 GB", table_of_streams),
        ("an object that is itself", own_reference),
    ]
}

/// Pages of sizes that cannot be.
fn boxes() -> Named {
    let of = |numbers: &str| File::new().page_with(&format!("/MediaBox [{numbers}]"));
    let unit = "/MediaBox [0 0 300 300] /UserUnit 1e30";
    vec![
        ("a page of 10^30 points", of("0 0 1e30 1e30")),
        (
            "a page of 340282346638528859811704183484516925440 points",
            {
                of(
                    "0 0 340282346638528859811704183484516925440 340282346638528859811704183484516925440",
                )
            },
        ),
        ("a page as thin as a hair", of("0 0 1000000000 0.000001")),
        (
            "a page from the end to the beginning",
            of("300 300 -2147483648 -2147483648"),
        ),
        ("a page of no numbers", of("NaN Infinity -Infinity null")),
        ("a page of a point", of("0 0 0.0000001 0.0000001")),
        ("a page whose unit is 10^30", File::new().page_with(unit)),
    ]
}

/// Pictures inside a PDF that claim to be huge.
fn images() -> Named {
    let with = |entries: &str, data: &[u8]| {
        let mut file = File::new();
        let image = file.stream(&format!("/Type /XObject /Subtype /Image {entries}"), data);
        file.page(
            &format!("/XObject << /I {image} 0 R >>"),
            "300 0 0 300 0 0 cm /I Do",
        )
    };
    let rgb = "/Width 30000 /Height 30000 /ColorSpace /DeviceRGB /BitsPerComponent 8";
    let gray = "/Width 60000 /Height 60000 /ColorSpace /DeviceGray /BitsPerComponent 1";
    let twice = "/Filter [/FlateDecode /FlateDecode]";
    let pixels = compressed(&repeated(0, 27 * GIB / 10));
    let bilevel = "/Filter /CCITTFaxDecode /DecodeParms << /K -1 /Columns 60000 /Rows 60000 >>";
    // Segment 0: page information of 60,000 x 60,000; segment 1: a generic region of that size.
    let mut jbig2 = vec![0, 0, 0, 0, 0x30, 0, 1, 0, 0, 0, 19];
    jbig2.extend([60_000_u32.to_be_bytes(), 60_000_u32.to_be_bytes()].concat());
    jbig2.extend([0; 11]);
    jbig2.extend([0, 0, 0, 1, 0x26, 0, 1, 0, 0, 0, 30]);
    jbig2.extend([60_000_u32.to_be_bytes(), 60_000_u32.to_be_bytes()].concat());
    jbig2.extend([0; 22]);
    // Each row is predicted from the one before.
    let predictor = "/Filter /FlateDecode /DecodeParms << /Predictor 15 /Colors 2000000000 \
                     /BitsPerComponent 16 /Columns 2000000000 >>";
    vec![
        ("30,000 x 30,000 pixels of nothing", with(rgb, b"")),
        (
            "30,000 x 30,000 pixels, compressed twice",
            with(&format!("{rgb} {twice}"), &pixels),
        ),
        (
            "a JPEG of 30,000 x 30,000 pixels",
            with(
                &format!("{rgb} /Filter /DCTDecode"),
                &jpeg_header(30_000, 30_000),
            ),
        ),
        (
            "a JPEG 2000 of 60,000 x 60,000 pixels",
            with(
                &format!("{rgb} /Filter /JPXDecode"),
                &jpeg2000_header(60_000, 60_000),
            ),
        ),
        (
            "a fax of 60,000 x 60,000 pixels",
            with(&format!("{gray} {bilevel}"), &[0x55; 4096]),
        ),
        (
            "a JBIG2 of 60,000 x 60,000 pixels",
            with(&format!("{gray} /Filter /JBIG2Decode"), &jbig2),
        ),
        (
            "a predictor with rows of gigabytes",
            with(&format!("{rgb} {predictor}"), &compressed(&[0; 4096])),
        ),
        (
            "2,147,483,647 x 2,147,483,647 pixels",
            with(
                "/Width 2147483647 /Height 2147483647 /ColorSpace /DeviceRGB /BitsPerComponent 8",
                b"x",
            ),
        ),
    ]
}
