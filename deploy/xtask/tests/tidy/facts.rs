//! What the rules need to know of a Rust file, taken from its tokens.
//!
//! Tokens and not a syntax tree: the tree of a file shows the call of a macro but not what stands in it, and the
//! property tests of this project live inside `proptest! { ... }`. Comments and the inside of strings are no tokens, so
//! a rule about names never stumbles over prose.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// One file's facts. Lines count from 1.
#[derive(Default)]
pub struct Facts {
    /// Every function with a body, wherever it stands.
    pub functions: Vec<Function>,
    /// Every attribute, outer and inner.
    pub attributes: Vec<Attribute>,
    /// Files this one asks for: `mod name;`.
    pub modules: Vec<Module>,
    /// Names and punctuation outside `#[cfg(test)]`, in order, flattened; `(` opens a group and nothing closes it.
    pub product: Vec<Word>,
    /// Why the file could not be read.
    pub broken: Option<String>,
}

/// A function with a body.
pub struct Function {
    /// Its name.
    pub name: String,
    /// Where `fn` stands.
    pub line: usize,
    /// From `fn` to the closing brace.
    pub lines: usize,
    /// Whether an attribute ending in `test` stands before it.
    pub is_test: bool,
}

/// `#[name(...)]` or `#![name(...)]`.
pub struct Attribute {
    /// The last part of its path: `test` for `tokio::test`.
    pub name: String,
    /// All of it, with single spaces between tokens.
    pub text: String,
    /// Where it begins.
    pub line: usize,
}

/// `mod name;`
pub struct Module {
    /// Its name.
    pub name: String,
    /// The argument of `#[path = ...]`, where there is one.
    pub path: Option<String>,
    /// The inline modules around it, from the outside in.
    pub inside: Vec<String>,
}

/// A name or a punctuation mark.
pub struct Word {
    /// As written.
    pub text: String,
    /// Where.
    pub line: usize,
}

impl Facts {
    /// Reads `text`; what does not parse is a fact too.
    pub fn of(path: &str, text: &str) -> Self {
        let mut facts = Self::default();
        // The lexer takes a first line `#!...` for an attribute.
        match text.parse::<TokenStream>() {
            Ok(tokens) => {
                let test = path.ends_with("/tests.rs") || path.contains("/tests/");
                facts.walk(tokens, &Scope { test, inside: Vec::new() });
            }
            Err(why) => facts.broken = Some(why.to_string()),
        }
        facts
    }

    fn walk(&mut self, tokens: TokenStream, scope: &Scope) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut pending = Pending::default();
        let mut at = 0;
        while at < tokens.len() {
            if let Some(width) = self.attribute(&tokens[at..], &mut pending) {
                at += width;
                continue;
            }
            match &tokens[at] {
                TokenTree::Ident(word) if word == "fn" => {
                    self.function(&tokens[at..], &pending);
                    self.word(&tokens[at], scope, &pending);
                }
                TokenTree::Ident(word) if word == "mod" => {
                    self.module(&tokens[at..], scope, &mut pending);
                }
                TokenTree::Group(group) => self.group(group, scope, &mut pending),
                token @ (TokenTree::Ident(_) | TokenTree::Punct(_)) => {
                    self.word(token, scope, &pending);
                }
                TokenTree::Literal(_) => {}
            }
            if is_mark(&tokens[at], ';') {
                pending = Pending::default();
            }
            at += 1;
        }
    }

    /// Takes `#[...]` or `#![...]` and says how many tokens that was.
    fn attribute(&mut self, tokens: &[TokenTree], pending: &mut Pending) -> Option<usize> {
        let [TokenTree::Punct(hash), rest @ ..] = tokens else { return None };
        if hash.as_char() != '#' {
            return None;
        }
        let (group, width) = match rest {
            [TokenTree::Group(group), ..] => (group, 2),
            [TokenTree::Punct(bang), TokenTree::Group(group), ..] if bang.as_char() == '!' => {
                (group, 3)
            }
            _ => return None,
        };
        if group.delimiter() != Delimiter::Bracket {
            return None;
        }
        let text = group.stream().to_string().replace('\n', " ");
        let name = attribute_name(group);
        // An inner attribute speaks of the file, not of what comes next.
        if width == 2 {
            pending.is_test |= name == "test";
            pending.for_tests |= name == "cfg" && asks_for_tests(group);
            if name == "path" {
                pending.path = text.split('"').nth(1).map(str::to_owned);
            }
        }
        self.attributes.push(Attribute { name, text, line: hash.span().start().line });
        Some(width)
    }

    fn function(&mut self, tokens: &[TokenTree], pending: &Pending) {
        let [first, TokenTree::Ident(name), rest @ ..] = tokens else { return };
        // A signature holds no brace, and one without a body ends in `;`.
        let end = rest.iter().position(|token| braced(token).is_some() || is_mark(token, ';'));
        let Some(body) = end.and_then(|end| braced(&rest[end])) else { return };
        let line = first.span().start().line;
        let lines = body.span_close().end().line + 1 - line;
        let name = name.to_string();
        self.functions.push(Function { name, line, lines, is_test: pending.is_test });
    }

    fn module(&mut self, tokens: &[TokenTree], scope: &Scope, pending: &mut Pending) {
        let [_, TokenTree::Ident(name), next, ..] = tokens else { return };
        let name = name.to_string();
        if is_mark(next, ';') {
            let (path, inside) = (pending.path.take(), scope.inside.clone());
            self.modules.push(Module { name, path, inside });
        } else {
            pending.opens = Some(name);
        }
    }

    fn group(&mut self, group: &Group, scope: &Scope, pending: &mut Pending) {
        let mut within = scope.clone();
        within.test |= pending.for_tests || pending.is_test;
        let brace = group.delimiter() == Delimiter::Brace;
        if brace {
            within.inside.extend(pending.opens.take());
        } else if !within.test {
            let line = group.span_open().start().line;
            let open = if group.delimiter() == Delimiter::Parenthesis { "(" } else { "[" };
            self.product.push(Word { text: open.to_owned(), line });
        }
        self.walk(group.stream(), &within);
        if brace {
            *pending = Pending::default();
        }
    }

    fn word(&mut self, token: &TokenTree, scope: &Scope, pending: &Pending) {
        if scope.test || pending.for_tests || pending.is_test {
            return;
        }
        let line = token.span().start().line;
        self.product.push(Word { text: token.to_string(), line });
    }
}

/// Where a token stands.
#[derive(Clone)]
struct Scope {
    test: bool,
    inside: Vec<String>,
}

/// What the attributes and keywords read so far say of the item that follows.
#[derive(Default)]
struct Pending {
    is_test: bool,
    for_tests: bool,
    path: Option<String>,
    opens: Option<String>,
}

fn is_mark(token: &TokenTree, mark: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == mark)
}

fn braced(token: &TokenTree) -> Option<&Group> {
    match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => Some(group),
        TokenTree::Group(_) | TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {
            None
        }
    }
}

fn attribute_name(attribute: &Group) -> String {
    let path = attribute.stream().into_iter().take_while(|token| match token {
        TokenTree::Ident(_) => true,
        TokenTree::Punct(mark) => mark.as_char() == ':',
        TokenTree::Group(_) | TokenTree::Literal(_) => false,
    });
    let names = path.filter(|token| matches!(token, TokenTree::Ident(_)));
    names.last().map(|name| name.to_string()).unwrap_or_default()
}

/// `cfg(test)` or `cfg(all(test, ...))`, but not `cfg(not(test))`, nor `cfg(any(test, ...))`: the product may hold that.
fn asks_for_tests(attribute: &Group) -> bool {
    let text: String = attribute.stream().to_string().split_whitespace().collect();
    text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

#[test]
fn functions_inside_macros_are_seen() {
    let text = "proptest! {\n    #[test]\n    fn a_b_c(x in 0..3) {\n        f(x);\n    }\n}\n";
    let facts = Facts::of("control/src/a.rs", text);
    let seen: Vec<_> = facts.functions.iter().map(|f| (&*f.name, f.line, f.lines)).collect();
    assert_eq!(seen, [("a_b_c", 3, 3)]);
    assert!(facts.functions[0].is_test);
}

#[test]
fn a_test_attribute_marks_one_function_alone() {
    let text = "#[tokio::test(flavor = \"x\")]\nasync fn one() {}\nfn two() {}\nfn three();\n";
    let facts = Facts::of("a.rs", text);
    let seen: Vec<_> = facts.functions.iter().map(|f| (&*f.name, f.is_test)).collect();
    assert_eq!(seen, [("one", true), ("two", false)]);
}

#[test]
fn what_is_for_tests_alone_is_not_product() {
    let text = "use a::B;\n#[cfg(test)]\nuse std::C;\n#[cfg(test)]\nmod tests {\n    use std::D;\n}\n\
        #[cfg(not(test))]\nfn e() {}\n";
    let facts = Facts::of("a.rs", text);
    let words: Vec<_> = facts.product.iter().map(|word| word.text.as_str()).collect();
    assert_eq!(words, ["use", "a", ":", ":", "B", ";", "fn", "e", "("]);
}

#[test]
fn a_file_that_is_not_rust_says_so() {
    assert!(Facts::of("a.rs", "fn a( {").broken.is_some());
}
