// Package common stands in for a cloud's, as far as flannel names it.
package common

// StringPtr points to a text.
func StringPtr(text string) *string { return &text }

// StringPtrs points to each of some texts.
func StringPtrs(texts []string) []*string {
	var pointers []*string
	for _, text := range texts {
		pointers = append(pointers, &text)
	}
	return pointers
}

// BoolPtr points to a truth.
func BoolPtr(truth bool) *bool { return &truth }
