//! The part of OTTL that conditions of `ottl_condition` use, as a tree with positions.
//!
//! ```text
//! or     = and { "or" and }
//! and    = not { "and" not }
//! not    = "not" not | comparison
//! comparison = sum [ ("==" | "!=" | "<" | "<=" | ">" | ">=") sum ]
//! sum    = product { ("+" | "-") product }
//! product = value { ("*" | "/") value }
//! value  = string | number | "true" | "false" | "nil" | ENUM | path | Function(or, ...) | "(" or ")"
//! path   = name { "." name } { "[" string | number "]" }
//! ```
//!
//! Source: pkg/ottl/LANGUAGE.md of opentelemetry-collector-contrib.

use std::ops::Range;

const DEPTH_MAX: usize = 64;

/// An expression and its bytes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Expression {
    pub(super) kind: Kind,
    pub(super) span: Range<usize>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Or(Vec<Expression>),
    And(Vec<Expression>),
    Not(Box<Expression>),
    Compare(Box<Expression>, Operator, Box<Expression>),
    Arithmetic(Box<Expression>, char, Box<Expression>),
    Path(Path),
    Call(String, Vec<Expression>),
    Text(String),
    Integer(i64),
    Double(f64),
    Boolean(bool),
    Nil,
    /// A name in capitals, such as `STATUS_CODE_ERROR`.
    Enum(String),
}

/// `span.attributes["k"]` is the names `span`, `attributes` and the key `k`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Path {
    pub(super) names: Vec<String>,
    /// Absent where there is no index.
    pub(super) key: Option<String>,
    /// Whether an index is a number, or there is more than one.
    pub(super) is_deeper: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Operator {
    /// The one that means the same with both sides exchanged.
    pub(super) fn flipped(self) -> Self {
        match self {
            Operator::Less => Operator::Greater,
            Operator::LessOrEqual => Operator::GreaterOrEqual,
            Operator::Greater => Operator::Less,
            Operator::GreaterOrEqual => Operator::LessOrEqual,
            same => same,
        }
    }
}

/// What cannot be read, and where.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) span: Range<usize>,
    pub(super) message: String,
}

/// Parses one condition.
pub(super) fn parse(text: &str) -> Result<Expression, Fault> {
    let mut parser = Parser { tokens: tokens(text)?, next: 0, end: text.len(), depth: 0 };
    let expression = parser.or()?;
    match parser.peek() {
        None => Ok(expression),
        Some(_) => Err(parser.unexpected("the end")),
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Text(String),
    Integer(i64),
    Double(f64),
    Name(String),
    /// Operators and punctuation.
    Sign(&'static str),
}

const SIGNS: [&str; 18] =
    ["==", "!=", "<=", ">=", "<", ">", "(", ")", "[", "]", ",", ".", "+", "-", "*", "/", "{", "}"];

fn tokens(text: &str) -> Result<Vec<(Token, Range<usize>)>, Fault> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let start = at;
        if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        }
        let token = if first == '"' {
            let (value, length) = string(&text[at..]).ok_or_else(|| Fault {
                span: start..text.len(),
                message: "the string has no closing quote".to_owned(),
            })?;
            at += length;
            Token::Text(value)
        } else if first.is_ascii_digit() {
            let is_number = |c: char| c.is_ascii_alphanumeric() || c == '.';
            at += text[at..].find(|c| !is_number(c)).unwrap_or(text.len() - at);
            number(&text[start..at]).ok_or_else(|| Fault {
                span: start..at,
                message: format!("`{}` is not a number", &text[start..at]),
            })?
        } else if first.is_ascii_alphabetic() || first == '_' {
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            at += text[at..].find(|c| !is_name(c)).unwrap_or(text.len() - at);
            Token::Name(text[start..at].to_owned())
        } else if let Some(sign) = SIGNS.iter().find(|sign| text[at..].starts_with(**sign)) {
            at += sign.len();
            Token::Sign(sign)
        } else {
            let message = format!("`{first}` has no meaning in OTTL");
            return Err(Fault { span: start..start + first.len_utf8(), message });
        };
        tokens.push((token, start..at));
    }
    Ok(tokens)
}

/// A string in double quotes at the beginning of `text`, and its length with the quotes.
fn string(text: &str) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, at + 1)),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'r' => value.push('\r'),
                '"' => value.push('"'),
                '\\' => value.push('\\'),
                // OTTL reads strings as Go does, which refuses any other; expressions are often
                // written with one backslash all the same.
                other => value.extend(['\\', other]),
            },
            c => value.push(c),
        }
    }
    None
}

fn number(text: &str) -> Option<Token> {
    if let Some(digits) = text.strip_prefix("0x") {
        return i64::from_str_radix(digits, 16).ok().map(Token::Integer);
    }
    match text.parse() {
        Ok(integer) => Some(Token::Integer(integer)),
        Err(_) => text.parse().ok().filter(|number: &f64| number.is_finite()).map(Token::Double),
    }
}

struct Parser {
    tokens: Vec<(Token, Range<usize>)>,
    next: usize,
    end: usize,
    depth: usize,
}

impl Parser {
    fn or(&mut self) -> Result<Expression, Fault> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let message = format!("the condition is nested more than {DEPTH_MAX} levels deep");
            return Err(Fault { span: self.span(), message });
        }
        let expression = self.joined("or", Self::and, Kind::Or);
        self.depth -= 1;
        expression
    }

    fn and(&mut self) -> Result<Expression, Fault> {
        self.joined("and", Self::not, Kind::And)
    }

    fn joined(
        &mut self,
        word: &str,
        part: impl Fn(&mut Self) -> Result<Expression, Fault>,
        join: impl Fn(Vec<Expression>) -> Kind,
    ) -> Result<Expression, Fault> {
        let mut parts = vec![part(self)?];
        while self.eat_name(word) {
            parts.push(part(self)?);
        }
        if parts.len() == 1 {
            return Ok(parts.remove(0));
        }
        let span = parts[0].span.start..parts[parts.len() - 1].span.end;
        Ok(Expression { kind: join(parts), span })
    }

    fn not(&mut self) -> Result<Expression, Fault> {
        let start = self.span().start;
        let mut negations = 0;
        while self.eat_name("not") {
            negations += 1;
        }
        let inner = self.comparison()?;
        if negations % 2 == 0 {
            return Ok(inner);
        }
        let span = start..inner.span.end;
        Ok(Expression { kind: Kind::Not(Box::new(inner)), span })
    }

    fn comparison(&mut self) -> Result<Expression, Fault> {
        let left = self.sum()?;
        let operator = match self.peek() {
            Some(Token::Sign("==")) => Operator::Equal,
            Some(Token::Sign("!=")) => Operator::NotEqual,
            Some(Token::Sign("<")) => Operator::Less,
            Some(Token::Sign("<=")) => Operator::LessOrEqual,
            Some(Token::Sign(">")) => Operator::Greater,
            Some(Token::Sign(">=")) => Operator::GreaterOrEqual,
            _ => return Ok(left),
        };
        self.next += 1;
        let right = self.sum()?;
        let span = left.span.start..right.span.end;
        Ok(Expression { kind: Kind::Compare(Box::new(left), operator, Box::new(right)), span })
    }

    fn sum(&mut self) -> Result<Expression, Fault> {
        self.arithmetic(['+', '-'], Self::product)
    }

    fn product(&mut self) -> Result<Expression, Fault> {
        self.arithmetic(['*', '/'], Self::value)
    }

    fn arithmetic(
        &mut self,
        signs: [char; 2],
        part: impl Fn(&mut Self) -> Result<Expression, Fault>,
    ) -> Result<Expression, Fault> {
        let mut left = part(self)?;
        while let Some(Token::Sign(sign)) = self.peek() {
            let Some(sign) = sign.chars().next().filter(|c| signs.contains(c)) else { break };
            self.next += 1;
            let right = part(self)?;
            let span = left.span.start..right.span.end;
            let kind = Kind::Arithmetic(Box::new(left), sign, Box::new(right));
            left = Expression { kind, span };
        }
        Ok(left)
    }

    fn value(&mut self) -> Result<Expression, Fault> {
        let start = self.span();
        let Some(token) = self.peek().cloned() else { return Err(self.unexpected("a value")) };
        self.next += 1;
        let kind = match token {
            Token::Text(text) => Kind::Text(text),
            Token::Integer(integer) => Kind::Integer(integer),
            Token::Double(number) => Kind::Double(number),
            Token::Sign("-") => match self.peek().cloned() {
                Some(Token::Integer(integer)) => {
                    self.next += 1;
                    Kind::Integer(-integer)
                }
                Some(Token::Double(number)) => {
                    self.next += 1;
                    Kind::Double(-number)
                }
                _ => return Err(self.unexpected("a number")),
            },
            Token::Sign("(") => {
                let inner = self.or()?;
                self.expect(")")?;
                return Ok(Expression { kind: inner.kind, span: start.start..self.last().end });
            }
            Token::Name(name) => self.named(name)?,
            Token::Sign(_) => {
                self.next -= 1;
                return Err(self.unexpected("a value"));
            }
        };
        Ok(Expression { kind, span: start.start..self.last().end })
    }

    fn named(&mut self, name: String) -> Result<Kind, Fault> {
        match name.as_str() {
            "true" => return Ok(Kind::Boolean(true)),
            "false" => return Ok(Kind::Boolean(false)),
            "nil" => return Ok(Kind::Nil),
            _ => {}
        }
        if self.eat("(") {
            return self.arguments(name);
        }
        let is_enum = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        if name.chars().all(is_enum) {
            return Ok(Kind::Enum(name));
        }
        let mut path = Path { names: vec![name], key: None, is_deeper: false };
        while self.eat(".") {
            let Some(Token::Name(name)) = self.peek().cloned() else {
                return Err(self.unexpected("a name"));
            };
            self.next += 1;
            path.is_deeper |= path.key.is_some();
            path.names.push(name);
        }
        while self.eat("[") {
            match self.peek().cloned() {
                Some(Token::Text(key)) if path.key.is_none() => path.key = Some(key),
                Some(_) => path.is_deeper = true,
                None => return Err(self.unexpected("a key")),
            }
            self.next += 1;
            self.expect("]")?;
        }
        Ok(Kind::Path(path))
    }

    fn arguments(&mut self, name: String) -> Result<Kind, Fault> {
        let mut arguments = Vec::new();
        if self.eat(")") {
            return Ok(Kind::Call(name, arguments));
        }
        loop {
            arguments.push(self.or()?);
            if !self.eat(",") {
                break;
            }
        }
        self.expect(")")?;
        Ok(Kind::Call(name, arguments))
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next).map(|(token, _)| token)
    }

    /// The bytes of the next token.
    fn span(&self) -> Range<usize> {
        self.tokens.get(self.next).map_or(self.end..self.end, |(_, span)| span.clone())
    }

    /// The bytes of the token before.
    fn last(&self) -> Range<usize> {
        let last = self.next.checked_sub(1).and_then(|last| self.tokens.get(last));
        last.map_or(0..0, |(_, span)| span.clone())
    }

    fn eat(&mut self, sign: &str) -> bool {
        let is_next = matches!(self.peek(), Some(Token::Sign(next)) if *next == sign);
        self.next += usize::from(is_next);
        is_next
    }

    fn eat_name(&mut self, word: &str) -> bool {
        let is_next = matches!(self.peek(), Some(Token::Name(next)) if next == word);
        self.next += usize::from(is_next);
        is_next
    }

    fn expect(&mut self, sign: &str) -> Result<(), Fault> {
        if self.eat(sign) { Ok(()) } else { Err(self.unexpected(&format!("`{sign}`"))) }
    }

    fn unexpected(&self, wanted: &str) -> Fault {
        let found = match self.peek() {
            None => "the condition ends".to_owned(),
            Some(Token::Text(_)) => "there is a string".to_owned(),
            Some(Token::Integer(_) | Token::Double(_)) => "there is a number".to_owned(),
            Some(Token::Name(name)) => format!("there is `{name}`"),
            Some(Token::Sign(sign)) => format!("there is `{sign}`"),
        };
        Fault { span: self.span(), message: format!("{found} where {wanted} should be") }
    }
}
