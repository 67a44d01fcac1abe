# What a policy may do with an input, an expression a rule: tests/properties/test_two_engines_agreement.py names
# one in input.rule, and has both engines evaluate it.
package agent.authz

value := input.a == input.b if input.rule == "equal"

value := input.a != input.b if input.rule == "unequal"

value := input.a < input.b if input.rule == "less"

value := input.a <= input.b if input.rule == "less or equal"

value := input.a > input.b if input.rule == "greater"

value := input.a >= input.b if input.rule == "greater or equal"

value := input.a + input.b if input.rule == "sum of two"

value := input.a - input.b if input.rule == "difference"

value := input.a * input.b if input.rule == "product"

value := input.a / input.b if input.rule == "quotient"

value := input.a % input.b if input.rule == "remainder"

value := [abs(input.a), round(input.a)] if input.rule == "rounded"


value := [is_number(input.a), is_string(input.a), is_boolean(input.a), is_null(input.a)] if {
	input.rule == "types"
}

value := [is_array(input.a), is_object(input.a), type_name(input.a)] if input.rule == "more types"

value := count(input.a) if input.rule == "count"

value := max(input.a) if input.rule == "max"

value := min(input.a) if input.rule == "min"

value := sort(input.a) if input.rule == "sort"

value := sum(input.a) if input.rule == "sum"

value := true if {
	input.rule == "in"
	input.a in input.b
}

value := input.b[input.a] if input.rule == "lookup"

value := object.get(input.a, input.b, "none") if input.rule == "object.get"

value := object.keys(input.a) if input.rule == "object.keys"

value := object.union(input.a, input.b) if input.rule == "object.union"

value := object.remove(input.a, ["x"]) if input.rule == "object.remove"

value := array.concat(input.a, input.b) if input.rule == "array.concat"

value := array.slice(input.a, 1, 2) if input.rule == "array.slice"

value := array.reverse(input.a) if input.rule == "array.reverse"

value := {x | some x in input.a} & {x | some x in input.b} if input.rule == "intersection"

value := {x | some x in input.a} | {x | some x in input.b} if input.rule == "union"

value := {x | some x in input.a} - {x | some x in input.b} if input.rule == "set difference"

value := [[k, v] | some k, v in input.a] if input.rule == "pairs"

value := {k: v | some k, v in input.a} if input.rule == "object of pairs"

value := contains(input.a, input.b) if input.rule == "contains"

value := startswith(input.a, input.b) if input.rule == "startswith"

value := endswith(input.a, input.b) if input.rule == "endswith"

value := split(input.a, input.b) if input.rule == "split"

value := concat("/", input.a) if input.rule == "concat"

value := indexof(input.a, input.b) if input.rule == "indexof"

value := substring(input.a, 1, 2) if input.rule == "substring"

value := replace(input.a, input.b, "-") if input.rule == "replace"

value := [trim(input.a, "/ "), trim_space(input.a), trim_prefix(input.a, "/")] if input.rule == "trim"

value := [trim_left(input.a, "."), trim_right(input.a, "."), trim_suffix(input.a, "/")] if {
	input.rule == "more trim"
}

value := sprintf("%s: %v, %d", [input.a, input.b, input.n]) if input.rule == "sprintf"

value := strings.reverse(input.a) if input.rule == "strings.reverse"

value := regex.match(`^[a-z]+(/[a-z0-9_.-]+)*$`, input.a) if input.rule == "regex.match"

value := glob.match("*/*.git", ["/"], input.a) if input.rule == "glob.match"

value := glob.match("acme/**", ["/"], input.a) if input.rule == "glob.match deep"

value := [
	regex.match(`^(?:[^/:]+://)?[a-z0-9.-]+(:[0-9]{1,5})?$`, input.a),
	regex.match(`(?i)^(admin|root)`, input.a),
	regex.match(`[^ -~]`, input.a),
	glob.match("*.example.com", [], input.a),
	glob.match("v*.*", ["."], input.a),
] if {
	input.rule == "patterns"
}

value := semver.compare(input.a, "1.2.3") if input.rule == "semver.compare"

value := base64.encode(input.a) if input.rule == "base64.encode"

value := hex.encode(input.a) if input.rule == "hex.encode"


value := time.date(input.n) if input.rule == "time.date"

value := [p | walk(input.a, [p, v]); is_string(v)] if input.rule == "walk"

value := true if {
	input.rule == "every"
	every x in input.a { x != input.b }
}

value := true if {
	input.rule == "not"
	not input.a.x
}

value := true if {
	input.rule == "not equal nested"
	input.a.x.y != input.b
}

value := "first" if {
	input.rule == "else"
	input.a == "x"
} else := "second" if {
	input.rule == "else"
	input.b
}

value := bounded(input.a, input.b) if input.rule == "function"

bounded(low, high) := "number" if {
	is_number(low)
	low < high
}

bounded(low, high) := "text" if {
	is_string(low)
	startswith(high, low)
}

value := any_of(input.a) if input.rule == "default function"

default any_of(_) := "other"

any_of(x) := "seven" if x == 7

value := strings.any_prefix_match(input.a, input.b) if input.rule == "strings.any_prefix_match"

value := strings.any_suffix_match(input.a, input.b) if input.rule == "strings.any_suffix_match"

value := object.filter(input.a, ["x", "y"]) if input.rule == "object.filter"


value := object.union_n([input.a, input.b]) if input.rule == "object.union_n"


value := product(input.a) if input.rule == "product"

value := [base64url.encode(input.a), base64url.encode_no_pad(input.a)] if {
	input.rule == "base64url.encode"
}

value := [is_set(input.a), is_set({input.a})] if input.rule == "is_set"

value := union({{x | some x in input.a}, {x | some x in input.b}}) if input.rule == "union of sets"

value := intersection({{x | some x in input.a}, {x | some x in input.b}}) if {
	input.rule == "intersection of sets"
}

value := time.now_ns() > 1700000000000000000 if input.rule == "time.now_ns"


value := [time.clock(input.n), time.weekday(input.n)] if input.rule == "time.clock"

value := time.diff(input.n, 0) if input.rule == "time.diff"

value := graph.reachable(input.a, {"x"}) if input.rule == "graph.reachable"



