//! Parses the part of OTTL that `ottl_condition` uses into a tree with positions.
//!
//! ```text
//! or     = and { "or" and }
//! and    = not { "and" not }
//! not    = [ "not" ] comparison
//! comparison = sum [ ("==" | "!=" | "<" | "<=" | ">" | ">=") sum ]
//! sum    = product { ("+" | "-") product }
//! product = value { ("*" | "/") value }
//! value  = string | number | "true" | "false" | "nil" | ENUM | path
//!        | Function(or, ...) | "(" or ")"
//! path   = name { "." name } { "[" string | number "]" }
//! ```
//!
//! The text comes from the Collector's file, in which `$$` stands for a dollar.
//!
//! Source: pkg/ottl/LANGUAGE.md of opentelemetry-collector-contrib.

use std::ops::Range;

/// The most levels of parentheses, arguments and arithmetic.
const DEPTH_MAX: usize = 64;

/// An expression and its byte range.
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

/// A path: `span.attributes["k"]` has the names `span` and `attributes` and the key `k`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Path {
    pub(super) names: Vec<String>,
    /// The index in brackets, if there is one.
    pub(super) key: Option<String>,
    /// Whether the index is a number, or there is more than one index.
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
    /// The operator that has the same meaning with both sides exchanged.
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

/// A syntax error and its byte range.
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
    /// An integer without its sign.
    Integer(u64),
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
        let after = text[at + first.len_utf8()..].chars().next();
        let is_number =
            first.is_ascii_digit() || first == '.' && after.is_some_and(|c| c.is_ascii_digit());
        let token = if first == '"' {
            let (value, length) = string(&text[at..]).map_err(|fault| fault.moved(start))?;
            at += length;
            Token::Text(value)
        } else if is_number && !is_index_dot(&tokens, first) {
            let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_');
            let mut end = at + text[at..].find(|c| !is_part(c)).unwrap_or(text.len() - at);
            // The sign of an exponent belongs to the number.
            if text[at..end].ends_with(['e', 'E']) && text[end..].starts_with(['+', '-']) {
                end += 1;
                end += text[end..].find(|c| !is_part(c)).unwrap_or(text.len() - end);
            }
            at = end;
            number(&text[start..at])
                .map_err(|message| Fault { span: start..at, message: message.to_owned() })?
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

/// Whether `first` is the `.` after a path, as in `a.b`, and not the beginning of a number.
fn is_index_dot(tokens: &[(Token, Range<usize>)], first: char) -> bool {
    first == '.' && matches!(tokens.last(), Some((Token::Name(_) | Token::Sign("]"), _)))
}

/// Parses the string in double quotes at the start of `text`. Returns it and its length with
/// quotes.
fn string(text: &str) -> Result<(String, usize), Fault> {
    let unclosed =
        || Fault { span: 0..text.len(), message: "the string has no closing quote".to_owned() };
    let mut value = String::new();
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Ok((value, at + 1)),
            '$' => {
                characters.next_if(|(_, next)| *next == '$');
                value.push('$');
            }
            '\\' => {
                let (_, escape) = characters.next().ok_or_else(unclosed)?;
                let digits = match escape {
                    'x' => 2,
                    'u' => 4,
                    'U' => 8,
                    _ => 0,
                };
                let end = at + 1 + escape.len_utf8() + digits;
                let meant = match digits {
                    0 => simple_escape(escape),
                    _ => text.get(at + 2..end).and_then(coded),
                };
                let Some(meant) = meant else {
                    let end = text.len().min(at + 1 + escape.len_utf8());
                    let message = format!(
                        "`\\{escape}` is not an escape in an OTTL string; write a backslash as \
                         `\\\\`"
                    );
                    return Err(Fault { span: at..end, message });
                };
                value.push(meant);
                for _ in 0..digits {
                    characters.next();
                }
            }
            c => value.push(c),
        }
    }
    Err(unclosed())
}

/// The character that a simple escape stands for in a Go string.
fn simple_escape(escape: char) -> Option<char> {
    Some(match escape {
        'a' => '\x07',
        'b' => '\x08',
        'f' => '\x0c',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\x0b',
        '"' | '\\' => escape,
        _ => return None,
    })
}

/// A character given by its number. `\x` stands for a byte, which is a character up to `\x7f`.
fn coded(digits: &str) -> Option<char> {
    let code = u32::from_str_radix(digits, 16).ok()?;
    char::from_u32(code).filter(|_| digits.len() > 2 || code < 0x80)
}

fn number(text: &str) -> Result<Token, &'static str> {
    const NO_NUMBER: &str = "this is not a number in OTTL";
    if text.starts_with("0x") {
        return Err("a bytes literal cannot be compared");
    }
    if text.bytes().all(|c| c.is_ascii_digit()) {
        if text.len() > 1 && text.starts_with('0') {
            return Err("a number that begins with 0 is octal in OTTL; write it without the 0");
        }
        return text.parse().map(Token::Integer).map_err(|_| "the number is too large");
    }
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let is_double = mantissa.split_once('.').is_some_and(|(whole, fraction)| {
        (whole.is_empty() || is_digits(whole)) && is_digits(fraction)
    }) && is_digits(exponent.trim_start_matches(['+', '-']));
    let double = text.parse().ok().filter(|number: &f64| is_double && number.is_finite());
    double.map(Token::Double).ok_or(NO_NUMBER)
}

impl Fault {
    fn moved(self, by: usize) -> Self {
        Fault { span: self.span.start + by..self.span.end + by, ..self }
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
            return Err(self.too_deep());
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
        if !self.eat_name("not") {
            return self.comparison();
        }
        let inner = self.comparison()?;
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
        let mut operations = 0;
        while let Some(Token::Sign(sign)) = self.peek() {
            let Some(sign) = sign.chars().next().filter(|c| signs.contains(c)) else { break };
            operations += 1;
            if operations > DEPTH_MAX {
                return Err(self.too_deep());
            }
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
            Token::Integer(_) | Token::Double(_) => {
                self.next -= 1;
                self.signed(1)?
            }
            Token::Sign("+") => self.signed(1)?,
            Token::Sign("-") => self.signed(-1)?,
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

    /// Parses the number that follows and applies the sign.
    fn signed(&mut self, sign: i8) -> Result<Kind, Fault> {
        let span = self.span();
        let number = match self.peek() {
            Some(Token::Integer(number)) => i64::try_from(i128::from(*number) * i128::from(sign))
                .map(Kind::Integer)
                .map_err(|_| Fault { span, message: "the number is too large".to_owned() })?,
            Some(Token::Double(number)) => Kind::Double(number * f64::from(sign)),
            _ => return Err(self.unexpected("a number")),
        };
        self.next += 1;
        Ok(number)
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

    /// The byte range of the next token.
    fn span(&self) -> Range<usize> {
        self.tokens.get(self.next).map_or(self.end..self.end, |(_, span)| span.clone())
    }

    /// The byte range of the previous token.
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

    fn too_deep(&self) -> Fault {
        let message = format!("the condition is nested more than {DEPTH_MAX} levels deep");
        Fault { span: self.span(), message }
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
