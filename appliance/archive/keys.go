package archive

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"filippo.io/age"

	"kthwd/appliance/advice"
)

// ParseRecipients reads age recipients: age1… each, or the path of a file with one a line.
// All that cannot be read are named at once.
func ParseRecipients(all []string) (recipients []age.Recipient, err error) {
	var problems []error
	for _, text := range all {
		some, err := parseRecipient(text)
		if err != nil {
			if strings.HasPrefix(text, secretKey) {
				text = secretKey + "…"
			}
			problems = append(problems, advice.With(fmt.Errorf("recipient %.80q: %w", text, err), "age-keygen -o key.txt makes an identity, and prints its recipient, age1…"))
		}
		recipients = append(recipients, some...)
	}
	return recipients, errors.Join(problems...)
}

// secretKey begins an identity, which no error may quote.
const secretKey = "AGE-SECRET-KEY-"

func parseRecipient(text string) ([]age.Recipient, error) {
	if strings.HasPrefix(text, "age1") {
		return age.ParseRecipients(strings.NewReader(text))
	}
	if strings.HasPrefix(text, secretKey) {
		return nil, errors.New("this is an identity, which is secret: a recipient begins with age1")
	}
	f, err := os.Open(text)
	if err != nil {
		return nil, fmt.Errorf("neither age1… nor a file: %w", err)
	}
	defer f.Close()
	return age.ParseRecipients(f)
}

// ReadIdentities reads files of age identities, as age-keygen writes them.
func ReadIdentities(files []string) (all []age.Identity, err error) {
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		some, err := age.ParseIdentities(f)
		f.Close()
		if err != nil {
			// age's errors do not quote the key.
			return nil, advice.With(fmt.Errorf("%s: not a file of age identities", name), "age-keygen -o FILE writes one; it has a line AGE-SECRET-KEY-1…")
		}
		all = append(all, some...)
	}
	return all, nil
}
