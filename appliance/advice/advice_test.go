package advice

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
)

func TestLines(t *testing.T) {
	a, b, c := errors.New("a"), errors.New("b"), errors.New("c")
	sentence := fmt.Errorf("%w, after %w", a, b)
	for name, tt := range map[string]struct {
		err  error
		want []error
	}{
		"none":               {nil, nil},
		"one":                {a, []error{a}},
		"joined":             {errors.Join(a, b), []error{a, b}},
		"joined twice":       {errors.Join(errors.Join(a, b), c), []error{a, b, c}},
		"two causes":         {sentence, []error{sentence}},
		"two causes, joined": {errors.Join(sentence, c), []error{sentence, c}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Lines(tt.err); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// Usage marks each line, and changes no text.
func TestUsage(t *testing.T) {
	for name, err := range map[string]error{
		"one":        io.EOF,
		"joined":     errors.Join(io.EOF, errors.New("b")),
		"two causes": fmt.Errorf("%w, after %w", io.EOF, io.ErrClosedPipe),
	} {
		t.Run(name, func(t *testing.T) {
			got := Usage(err)
			if got.Error() != err.Error() || !errors.Is(got, io.EOF) {
				t.Errorf("got %v, want %v", got, err)
			}
			for _, e := range Lines(got) {
				if marked, ok := errors.AsType[interface {
					error
					Usage() bool
				}](e); !ok || !marked.Usage() {
					t.Errorf("%v is not marked", e)
				}
			}
		})
	}
	if err := Usage(nil); err != nil {
		t.Errorf("got %v for no error", err)
	}
}
